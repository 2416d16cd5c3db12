"""What both networks are made of in TensorFlow: convolution padded as torch pads it, lean instance norm."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import tensorflow as tf

Tensor: TypeAlias = Any
"""A ``tf.Tensor``; TensorFlow comes without types. Images are (B, Z, Y, X, C) inside the networks."""

Triple: TypeAlias = tuple[int, int, int]

SLOPE = 0.01
EPSILON = 1e-5
SPACE = (1, 2, 3)


def as_three(step: tuple[int, ...]) -> Triple:
    """A stride or kernel of two dimensions as one of three that leaves z alone."""
    return (1, step[0], step[1]) if len(step) == 2 else (step[0], step[1], step[2])


def to_last(image: Tensor) -> Tensor:
    """(B, C, Z, Y, X) -> (B, Z, Y, X, C)."""
    return tf.transpose(image, (0, 2, 3, 4, 1))


def to_first(image: Tensor) -> Tensor:
    """(B, Z, Y, X, C) -> (B, C, Z, Y, X)."""
    return tf.transpose(image, (0, 4, 1, 2, 3))


def convolve(
    image: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Triple = (1, 1, 1)
) -> Tensor:
    """Convolution with zero padding of half a kernel.

    TensorFlow's ``SAME`` pads another side than torch where the stride is 2, so it is used for stride 1 only.

    Args:
        image: (B, Z, Y, X, C).
        weight: (O, C, kz, ky, kx), odd kernel sizes.
        bias: (O,) or None.
        stride: Step along (z, y, x).

    Returns:
        (B, ceil(Z / sz), ceil(Y / sy), ceil(X / sx), O).
    """
    kernel = weight.shape[2:]
    filters = tf.transpose(weight, (2, 3, 4, 1, 0))
    if tuple(kernel) == (1, 1, 1) and stride == (1, 1, 1):
        result = tf.tensordot(image, filters[0, 0, 0], 1)
    elif stride == (1, 1, 1):
        result = _convolve_every_voxel(image, filters)
    else:
        padded = tf.pad(image, [[0, 0], *([k // 2, k // 2] for k in kernel), [0, 0]])
        result = tf.nn.conv3d(padded, filters, (1, *stride, 1), "VALID")
    return result if bias is None else result + bias


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _convolve_every_voxel(image: Tensor, filters: Tensor) -> tuple[Tensor, Any]:
    """Stride 1, filters (kz, ky, kx, C, O).

    TensorFlow's own gradients unfold the whole image into columns, 27 times its size for a kernel of 3;
    these need one copy of it and less time.
    """
    result = tf.nn.conv3d(image, filters, (1,) * 5, "SAME")

    def gradient(flow: Tensor) -> tuple[Tensor, Tensor]:
        mirrored = tf.transpose(tf.reverse(filters, (0, 1, 2)), (0, 1, 2, 4, 3))
        by_image = tf.nn.conv3d(flow, mirrored, (1,) * 5, "SAME")
        kernel = tuple(filters.shape[:3])
        with tf.control_dependencies([flow]):
            padded = tf.pad(image, [[0, 0], *([k // 2, k // 2] for k in kernel), [0, 0]])
        rows = tf.reshape(flow, (-1, flow.shape[-1]))
        by_place: list[Tensor] = []
        for z, y, x in itertools.product(*map(range, kernel)):
            # One after another, or all 27 copies are there at once.
            with tf.control_dependencies(by_place[-1:]):
                moved = tf.slice(padded, (0, z, y, x, 0), tf.shape(image))
            columns = tf.reshape(moved, (-1, filters.shape[3]))
            by_place.append(tf.matmul(columns, rows, transpose_a=True))
        return by_image, tf.reshape(tf.stack(by_place), filters.shape)

    return result, gradient


@tf.custom_gradient  # type: ignore[untyped-decorator]
def instance_norm(image: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Any]:
    """Each channel of each sample to mean ``bias`` and deviation ``weight``; keeps only its input."""
    mean, variance = tf.nn.moments(image, SPACE, keepdims=True)
    inverse = tf.math.rsqrt(variance + tf.constant(EPSILON, image.dtype))

    def gradient(flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = (image - mean) * inverse
        by_bias = tf.reduce_mean(flow, SPACE, keepdims=True)
        by_weight = tf.reduce_mean(flow * normed, SPACE, keepdims=True)
        voxels = tf.cast(tf.math.reduce_prod(tf.shape(image)[1:4]), image.dtype)
        by_image = (flow - by_bias - normed * by_weight) * (inverse * weight)
        return (
            by_image,
            tf.reduce_sum(by_weight, (0, *SPACE)) * voxels,
            tf.reduce_sum(by_bias, (0, *SPACE)) * voxels,
        )

    return (image - mean) * (inverse * weight) + bias, gradient


@tf.custom_gradient  # type: ignore[untyped-decorator]
def leaky_relu(image: Tensor) -> tuple[Tensor, Any]:
    """Slope `SLOPE` below zero; keeps only its output, which the next convolution keeps anyway.

    TensorFlow's own holds the slope as a float32, which in float64 is off by 2e-10.
    """
    active = tf.maximum(image, image * tf.constant(SLOPE, image.dtype))

    def gradient(flow: Tensor) -> Tensor:
        return tf.where(active > 0, flow, flow * tf.constant(SLOPE, flow.dtype))

    return active, gradient


@dataclass(frozen=True)
class Dropout:
    """Dropout of whole channels, drawn anew by the same seed; torch draws other channels.

    Args:
        probability: In (0, 1).
        seed: (2,) int32 tensor of this step.
    """

    probability: float
    seed: Tensor

    def silence(self, image: Tensor, place: int) -> Tensor:
        """Silence channels of the block numbered ``place``."""
        shape = tf.stack([tf.shape(image)[0], 1, 1, 1, image.shape[-1]])
        drawn = tf.random.stateless_uniform(shape, self.seed + tf.constant([place, 0]), dtype=tf.float64)
        return image * tf.cast(drawn >= self.probability, image.dtype) / (1.0 - self.probability)


def space_to_channels(image: Tensor, stride: Triple) -> Tensor:
    """(B, Z, Y, X, C) -> (B, Z / sz, Y / sy, X / sx, C * r); channel c * r + place in the block."""
    sizes, channels = tf.shape(image), image.shape[-1]
    sz, sy, sx = stride
    batch, size_z, size_y, size_x = (sizes[k] for k in range(4))
    split = tf.reshape(image, (batch, size_z // sz, sz, size_y // sy, sy, size_x // sx, sx, channels))
    moved = tf.transpose(split, (0, 1, 3, 5, 7, 2, 4, 6))
    return tf.reshape(moved, (batch, size_z // sz, size_y // sy, size_x // sx, channels * math.prod(stride)))


def channels_to_space(image: Tensor, stride: Triple) -> Tensor:
    """The inverse of `space_to_channels`."""
    if stride == (1, 1, 1):
        return image
    sizes, channels = tf.shape(image), image.shape[-1]
    sz, sy, sx = stride
    batch, size_z, size_y, size_x = (sizes[k] for k in range(4))
    kept = channels // math.prod(stride)
    split = tf.reshape(image, (batch, size_z, size_y, size_x, kept, sz, sy, sx))
    moved = tf.transpose(split, (0, 1, 5, 2, 6, 3, 7, 4))
    return tf.reshape(moved, (batch, size_z * sz, size_y * sy, size_x * sx, kept))


def pad_to_multiple(image: Tensor, stride: Triple) -> Tensor:
    """Repeat the last voxel along each axis until its size is a multiple of ``stride``."""
    for axis, step in enumerate(stride, start=1):
        if step > 1:
            size = tf.shape(image)[axis]
            places = tf.minimum(tf.range(size + (-size) % step), size - 1)
            image = tf.gather(image, places, axis=axis)
    return image


def crop(image: Tensor, sizes: Tensor | Sequence[Tensor]) -> Tensor:
    """The first ``sizes`` (Z, Y, X) voxels."""
    return image[:, : sizes[0], : sizes[1], : sizes[2]]
