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
    stride: Triple = as_three(config.stem_stride) if config.stem == "squeeze" else (1, 1, 1)
    unfolded = space_to_channels(pad_to_multiple(image, as_three(config.total_stride)), stride)
    weight, bias = tf.split(tensors["stem.weight"], 2), tf.split(tensors["stem.bias"], 2)
    halves = convolve(unfolded, weight[0], bias[0]), convolve(unfolded, weight[1], bias[1])
    outputs = run_trunk(config, tensors, halves, heads=heads, dropout=dropout)
    logits = []
    for scale, output in enumerate(outputs):
        if scale == 0:
            logits.append(crop(channels_to_space(output, stride), sizes))
            continue
        step = as_three(config.resampling[scale - 1])
        stride = (stride[0] * step[0], stride[1] * step[1], stride[2] * step[2])
        logits.append(crop(output, -(-sizes // tf.constant(stride))))
    return logits


def head_strides(config: NetworkConfig) -> tuple[Triple, ...]:
    """Voxels along (z, y, x) that one voxel of each head's logits stands for, finest first."""
    strides: list[Triple] = [(1, 1, 1)]
    stem = as_three(config.stem_stride) if config.kind == "iunet" and config.stem == "squeeze" else (1, 1, 1)
    steps = [stem, *(as_three(step) for step in config.resampling)]
    for scale in range(1, config.heads):
        taken = steps[: scale + 1]
        strides.append(tuple(math.prod(step[axis] for step in taken) for axis in range(3)))  # type: ignore[arg-type]
    return tuple(strides)
