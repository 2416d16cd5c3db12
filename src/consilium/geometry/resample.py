"""Resampling between grids, exact where both are aligned and linear elsewhere."""

from typing import Literal

import numpy as np
from scipy import ndimage

from consilium.errors import GeometryError
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray

Interpolation = Literal["linear", "nearest"]
ALIGNED_TOLERANCE = 1e-6


def resample(
    volume: Volume,
    grid: Grid,
    *,
    interpolation: Interpolation = "linear",
    fill: float = 0.0,
    antialias: bool = False,
) -> Volume:
    """The volume on another grid.

    Voxel centres are mapped through the patient, so orientation, obliqueness and offsets are all handled.
    Trilinear interpolation reproduces affine functions of position exactly. A target centre that lies within
    half a source voxel outside the outermost centres takes the edge value; farther out it is ``fill``.

    Args:
        volume: (Z, Y, X), any dtype.
        grid: The target.
        interpolation: ``"linear"`` gives float32 (float64 from float64), ``"nearest"`` keeps the dtype.
        fill: Value outside the source.
        antialias: Smooth first by a Gaussian of 0.5·(step² − 1)^½ voxels along each axis that gets coarser,
            so that fine detail does not fold into the coarse image. For images, not for masks.

    Returns:
        The volume on ``grid``. The same array, not a copy, where the grids are equal.
    """
    if volume.grid.shape_zyx == grid.shape_zyx and np.array_equal(
        volume.grid.affine.matrix, grid.affine.matrix
    ):
        return volume
    to_source = np.linalg.inv(volume.grid.affine.matrix) @ grid.affine.matrix
    order = {"linear": 1, "nearest": 0}.get(interpolation)
    if order is None:
        raise GeometryError(f"resample: interpolation must be 'linear' or 'nearest'; got {interpolation!r}.")
    array = volume.array
    if order == 1 and array.dtype != np.float64:
        array = array.astype(np.float32, copy=False)
    if order == 0 and array.dtype == np.bool_:
        array = array.view(np.uint8)
    if antialias and order == 1:
        array = _smooth(array, to_source)
    result = _interpolate(array, to_source, grid, order=order, fill=fill)
    return Volume(result.view(np.bool_) if volume.array.dtype == np.bool_ and order == 0 else result, grid)


def resample_probability(volume: Volume, grid: Grid, threshold: float = 0.5) -> Array:
    """Where a probability map, resampled linearly, reaches ``threshold``: bool (Z, Y, X) on ``grid``.

    Outside the source the probability is 0.
    """
    return np.asarray(resample(volume, grid, fill=0.0).array >= threshold)


def _smooth(array: Array, to_source: FloatArray) -> Array:
    step = np.linalg.norm(to_source[:3, :3], axis=1)
    sigma = 0.5 * np.sqrt(np.maximum(step**2 - 1, 0))
    if not (sigma > 0.1).any():
        return array
    return np.asarray(ndimage.gaussian_filter(array, sigma, mode="nearest"))


def _interpolate(array: Array, to_source: FloatArray, grid: Grid, *, order: int, fill: float) -> Array:
    linear, offset = to_source[:3, :3], to_source[:3, 3]
    diagonal = np.abs(linear - np.diag(np.diag(linear))).max() < ALIGNED_TOLERANCE / max(grid.shape_zyx)
    result = np.empty(grid.shape_zyx, dtype=array.dtype)
    ndimage.affine_transform(
        array,
        np.diag(linear).copy() if diagonal else linear,
        offset=offset,
        output_shape=grid.shape_zyx,
        output=result,
        order=order,
        mode="nearest",
    )
    _fill_outside(result, to_source, array.shape, fill=fill, diagonal=diagonal)
    return result


def _fill_outside(
    result: Array, to_source: FloatArray, shape: tuple[int, ...], *, fill: float, diagonal: bool
) -> None:
    """Set every voxel farther than half a source voxel outside the source to ``fill``, in place."""
    slack = 0.5 + ALIGNED_TOLERANCE
    if diagonal:
        for axis in range(3):
            position = to_source[axis, axis] * np.arange(result.shape[axis]) + to_source[axis, 3]
            outside = (position < -slack) | (position > shape[axis] - 1 + slack)
            index: list[slice | Array] = [slice(None)] * 3
            index[axis] = outside
            result[tuple(index)] = fill
        return
    y, x = np.meshgrid(np.arange(result.shape[1]), np.arange(result.shape[2]), indexing="ij")
    for z in range(result.shape[0]):
        outside = np.zeros(y.shape, dtype=bool)
        for axis in range(3):
            row = to_source[axis]
            position = row[0] * z + row[1] * y + row[2] * x + row[3]
            outside |= (position < -slack) | (position > shape[axis] - 1 + slack)
        result[z][outside] = fill
