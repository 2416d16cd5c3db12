"""Orthogonal resampling in TensorFlow: the same matrix, the same lifting on the grid."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from consilium.tensorflow.blocks import Tensor, Triple
from consilium.types import Array

GRID = 2.0**16
"""As in `consilium.networks.lifting`, which is loaded only where the stream lives on the grid."""


def compute_matrix(weight: Tensor, stride: Triple) -> Tensor:
    """``H (I + S)^-1 (I - S)`` with ``S = A - A^T``: orthogonal, the Haar matrix ``H`` for ``A = 0``."""
    signs = np.ones((1, 1))
    for step in stride:
        signs = np.kron(signs, np.array([[1.0, 1.0], [1.0, -1.0]]) if step == 2 else np.ones((1, 1)))
    skew = weight - tf.transpose(weight)
    identity = tf.eye(len(signs), dtype=weight.dtype)
    haar = tf.constant(signs, weight.dtype) * tf.constant(len(signs) ** -0.5, weight.dtype)
    return haar @ tf.linalg.solve(identity + skew, identity - skew)


def _to_rows(fine: Tensor, stride: Triple) -> Tensor:
    """(B, Z, Y, X, k) -> (r, B * Z/sz * Y/sy * X/sx * k): one row per place in the block."""
    sizes, kept = tf.shape(fine), fine.shape[-1]
    sz, sy, sx = stride
    batch, size_z, size_y, size_x = (sizes[k] for k in range(4))
    split = tf.reshape(fine, (batch, size_z // sz, sz, size_y // sy, sy, size_x // sx, sx, kept))
    return tf.reshape(tf.transpose(split, (2, 4, 6, 0, 1, 3, 5, 7)), (math.prod(stride), -1))


def _from_rows(rows: Tensor, coarse_sizes: list[Tensor], kept: int, stride: Triple) -> Tensor:
    """The inverse of `_to_rows`."""
    sz, sy, sx = stride
    batch, size_z, size_y, size_x = coarse_sizes
    split = tf.reshape(rows, (sz, sy, sx, batch, size_z, size_y, size_x, kept))
    moved = tf.transpose(split, (3, 4, 0, 5, 1, 6, 2, 7))
    return tf.reshape(moved, (batch, size_z * sz, size_y * sy, size_x * sx, kept))


def _coarse_to_rows(coarse: Tensor, rank: int) -> Tensor:
    """(B, Z, Y, X, r * k) -> (r, B * Z * Y * X * k)."""
    split = tf.reshape(coarse, (-1, rank, coarse.shape[-1] // rank))
    return tf.reshape(tf.transpose(split, (1, 0, 2)), (rank, -1))


def _rows_to_coarse(rows: Tensor, coarse_sizes: list[Tensor], kept: int, rank: int) -> Tensor:
    """The inverse of `_coarse_to_rows`: channel row * k + c."""
    split = tf.transpose(tf.reshape(rows, (rank, -1, kept)), (1, 0, 2))
    return tf.reshape(split, (*coarse_sizes, rank * kept))


def _sizes(image: Tensor, stride: Triple = (1, 1, 1)) -> list[Tensor]:
    sizes = tf.shape(image)
    return [sizes[0], *(sizes[axis] // step for axis, step in enumerate(stride, start=1))]


def downsample(fine: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """(B, Z, Y, X, k) -> (B, Z / sz, Y / sy, X / sx, r * k), orthogonal."""
    rank, kept = math.prod(stride), fine.shape[-1]
    if on_grid:
        lifted = tf.numpy_function(_lift_down, (fine, matrix, stride), fine.dtype, stateful=False)
        return tf.ensure_shape(lifted, (*fine.shape[:1], None, None, None, rank * kept))
    rows = matrix @ _to_rows(fine, stride)
    return _rows_to_coarse(rows, _sizes(fine, stride), kept, rank)


def upsample(coarse: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """The exact inverse of `downsample`."""
    rank = math.prod(stride)
    kept = coarse.shape[-1] // rank
    if on_grid:
        lifted = tf.numpy_function(_lift_up, (coarse, matrix, stride), coarse.dtype, stateful=False)
        return tf.ensure_shape(lifted, (*coarse.shape[:1], None, None, None, kept))
    rows = tf.transpose(matrix) @ _coarse_to_rows(coarse, rank)
    return _from_rows(rows, _sizes(coarse), kept, stride)


def downsample_backward(flow: Tensor, fine: Tensor, matrix: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Gradients of `downsample` by the image and the matrix; rounding counts as the identity."""
    rows = _coarse_to_rows(flow, math.prod(stride))
    by_matrix = tf.matmul(rows, _to_rows(fine, stride), transpose_b=True)
    fine_rows = tf.matmul(matrix, rows, transpose_a=True)
    return _from_rows(fine_rows, _sizes(flow), fine.shape[-1], stride), by_matrix


def upsample_backward(flow: Tensor, coarse: Tensor, matrix: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Gradients of `upsample` by the coarse image and the matrix; rounding counts as the identity."""
    rank, rows = math.prod(stride), _to_rows(flow, stride)
    by_matrix = tf.matmul(_coarse_to_rows(coarse, rank), rows, transpose_b=True)
    return _rows_to_coarse(matrix @ rows, _sizes(coarse), flow.shape[-1], rank), by_matrix


def resample(image: Tensor, matrix: Tensor, stride: Triple, *, up: bool, on_grid: bool) -> Tensor:
    """`downsample` or `upsample` as one differentiable step, for the plain path."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def step(image: Tensor, matrix: Tensor) -> tuple[Tensor, Any]:
        backward = upsample_backward if up else downsample_backward
        value = (upsample if up else downsample)(image, matrix, stride, on_grid=on_grid)
        return value, lambda flow: backward(flow, image, matrix, stride)

    return step(image, matrix)


def _lift_down(fine: Array, matrix: Array, stride: Array) -> Array:
    from consilium.networks.lifting import lift_arrays

    batch, *sizes, kept = fine.shape
    coarse_sizes = [size // int(step) for size, step in zip(sizes, stride, strict=True)]
    coarse = np.empty((batch, *coarse_sizes, kept * len(matrix)), dtype=np.float32)
    lift_arrays(np.require(fine, requirements=["C", "W"]), coarse, matrix, up=False)
    return coarse


def _lift_up(coarse: Array, matrix: Array, stride: Array) -> Array:
    from consilium.networks.lifting import lift_arrays

    batch, *sizes, channels = coarse.shape
    fine_sizes = [size * int(step) for size, step in zip(sizes, stride, strict=True)]
    fine = np.empty((batch, *fine_sizes, channels // len(matrix)), dtype=np.float32)
    lift_arrays(fine, np.require(coarse, requirements=["C", "W"]), matrix, up=True)
    return fine
