"""The invertible U-Net in TensorFlow: stem, trunk and heads of `consilium.networks.iunet`."""

import math
from collections.abc import Mapping

import tensorflow as tf

from consilium.networks.config import NetworkConfig
from consilium.tensorflow.blocks import (
    Dropout,
    Tensor,
    Triple,
    as_three,
    channels_to_space,
    convolve,
    crop,
    pad_to_multiple,
    space_to_channels,
)
from consilium.tensorflow.trunk import run_trunk


def run_iunet(
    config: NetworkConfig,
    tensors: Mapping[str, Tensor],
    image: Tensor,
    *,
    heads: int,
    dropout: Dropout | None = None,
) -> list[Tensor]:
    """Logits per scale, finest first; arguments as `consilium.tensorflow.unet3d.run_unet3d`."""
    sizes = tf.shape(image)[1:4]
    stem = _stem_stride(config)
    unfolded = space_to_channels(pad_to_multiple(image, as_three(config.total_stride)), stem)
    weight, bias = tf.split(tensors["stem.weight"], 2), tf.split(tensors["stem.bias"], 2)
    halves = convolve(unfolded, weight[0], bias[0]), convolve(unfolded, weight[1], bias[1])
    outputs = run_trunk(config, tensors, halves, heads=heads, dropout=dropout)
    strides = head_strides(config)[1 : len(outputs)]
    finest = crop(channels_to_space(outputs[0], stem), sizes)
    return [
        finest,
        *(
            crop(output, -(-sizes // tf.constant(stride)))
            for output, stride in zip(outputs[1:], strides, strict=True)
        ),
    ]


def _stem_stride(config: NetworkConfig) -> Triple:
    return as_three(config.stem_stride) if config.stem == "squeeze" else (1, 1, 1)


def head_strides(config: NetworkConfig) -> tuple[Triple, ...]:
    """Voxels along (z, y, x) that one voxel of each head's logits stands for, finest first."""
    strides: list[Triple] = [(1, 1, 1)]
    stem = _stem_stride(config) if config.kind == "iunet" else (1, 1, 1)
    steps = [stem, *(as_three(step) for step in config.resampling)]
    for scale in range(1, config.heads):
        taken = steps[: scale + 1]
        strides.append(tuple(math.prod(step[axis] for step in taken) for axis in range(3)))  # type: ignore[arg-type]
    return tuple(strides)
