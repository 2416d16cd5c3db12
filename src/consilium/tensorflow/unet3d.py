"""The 3D U-Net in TensorFlow: the function of `consilium.networks.unet3d` on the same parameters."""

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
    instance_norm,
    leaky_relu,
)


def run_unet3d(
    config: NetworkConfig,
    tensors: Mapping[str, Tensor],
    image: Tensor,
    *,
    heads: int,
    dropout: Dropout | None = None,
) -> list[Tensor]:
    """Logits per scale, finest first.

    Args:
        config: Of the network.
        tensors: Its parameters by canonical name.
        image: (B, Z, Y, X, C), any sizes.
        heads: How many of the finest scales give logits.
        dropout: None outside training.

    Returns:
        (B, ceil(Z / stride), ..., S) each.
    """
    walk = _Walk(config, tensors, dropout)
    skips = []
    for scale in range(config.scales):
        stride = as_three(config.resampling[scale - 1]) if scale else (1, 1, 1)
        image = walk.stage(f"encoder.{scale}", image, stride)
        skips.append(image)
    image = skips.pop()
    logits = [walk.head(config.scales - 1, image)] if heads == config.scales else []
    for scale in reversed(range(config.scales - 1)):
        skip = skips.pop()
        up = crop(walk.rise(scale, image), tf.shape(skip)[1:4])
        image = walk.stage(f"decoder.{scale}", tf.concat([up, skip], -1), (1, 1, 1))
        if scale < heads:
            logits.append(walk.head(scale, image))
    return logits[::-1]


class _Walk:
    """A pass through the network; counts blocks, so that each draws its own dropout."""

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, Tensor], dropout: Dropout | None) -> None:
        self._config, self._tensors, self._dropout, self._place = config, tensors, dropout, 0

    def stage(self, name: str, image: Tensor, stride: Triple) -> Tensor:
        for place in range(self._config.blocks[int(name.rpartition(".")[2])]):
            block = f"{name}.{place}"
            weight, bias = self._tensors[f"{block}.weight"], self._tensors[f"{block}.bias"]
            step: Triple = (1, 1, 1) if place else stride
            if self._config.norm == "instance":
                image = convolve(image, weight, stride=step)
                image = instance_norm(image, self._tensors[f"{block}.norm_weight"], bias)
            else:
                image = convolve(image, weight, bias, stride=step)
            image = leaky_relu(image)
            if self._dropout is not None:
                image = self._dropout.silence(image, self._place)
                self._place += 1
        return image

    def rise(self, scale: int, image: Tensor) -> Tensor:
        """Transposed convolution whose kernel is its stride."""
        weight, bias = (self._tensors[f"upsampling.{scale}.{part}"] for part in ("weight", "bias"))
        after, before, *stride = weight.shape
        columns = tf.reshape(tf.transpose(weight, (1, 0, 2, 3, 4)), (before, -1))
        risen = channels_to_space(tf.tensordot(image, columns, 1), (stride[0], stride[1], stride[2]))
        return tf.ensure_shape(risen, (None, None, None, None, after)) + bias

    def head(self, scale: int, image: Tensor) -> Tensor:
        return convolve(image, self._tensors[f"heads.{scale}.weight"], self._tensors[f"heads.{scale}.bias"])
