"""A grid of voxels in the patient, and an image on it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.affine import STANDARD_AXES_LPS, Affine
from consilium.geometry.crop import Box, crop_or_pad
from consilium.types import Array, FloatArray, Shape, Triple

SAME_GRID_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Reorientation:
    """A lossless change of array axes: first transpose by ``permutation``, then flip the axes in ``flips``.

    Works on the last three axes of an array, so that channels may stand in front.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: Array) -> Array:
        """The array in the new orientation; a view, no copy."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.permutation))
        flipped: Array = moved[self._flipping()]
        return flipped

    def undo(self, array: Array) -> Array:
        """The exact inverse of `apply`; a view, no copy."""
        lead = array.ndim - 3
        unflipped: Array = array[self._flipping()]
        return unflipped.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(self.permutation)))

    def _flipping(self) -> tuple[Any, ...]:
        return (Ellipsis, *(slice(None, None, -1 if flip else 1) for flip in self.flips))


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels: how many, and where.

    Args:
        shape_zyx: Number of voxels along each axis; each at least 1.
        affine: Index to LPS mm; integer indices are voxel centres.

    Raises:
        GeometryError: If a length is below 1.
    """

    shape_zyx: Shape
    affine: Affine

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape_zyx)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"grid: the shape must be three lengths of at least 1; got {self.shape_zyx}.")
        object.__setattr__(self, "shape_zyx", shape)

    @property
    def spacing_zyx_mm(self) -> Triple:
        """Distance between neighbouring voxel centres along Z, Y and X."""
        return self.affine.spacing_zyx_mm

    @property
    def voxel_volume_cm3(self) -> float:
        """Volume of one voxel in cm³."""
        return self.affine.voxel_volume_mm3 / 1000.0

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape_zyx
        return z * y * x

    def is_same_as(self, other: "Grid", tolerance_mm: float = SAME_GRID_TOLERANCE_MM) -> bool:
        """Whether both have the same shape and every voxel lies within ``tolerance_mm``."""
        if self.shape_zyx != other.shape_zyx:
            return False
        return self.affine.differs_by_mm(other.affine, self.shape_zyx) <= tolerance_mm

    def cropped(self, box: Box) -> "Grid":
        """The grid of ``box``, which may reach outside this one."""
        return Grid(box.shape_zyx, self.affine.shifted(box.start_zyx))

    def resampled(self, spacing_zyx_mm: Triple) -> "Grid":
        """A grid of the given spacing over the same extent, centred on the same point.

        The number of voxels per axis is the nearest integer to extent / spacing, at least 1. Where spacing
        does not divide the extent, the overhang is shared by both ends.
        """
        if min(spacing_zyx_mm) <= 0:
            raise GeometryError(f"grid: spacing must be positive; got {spacing_zyx_mm} mm (z, y, x).")
        step = np.asarray(spacing_zyx_mm) / np.asarray(self.spacing_zyx_mm)
        shape = np.maximum(1, np.rint(np.asarray(self.shape_zyx) / step)).astype(int)
        centre = (np.asarray(self.shape_zyx) - 1) / 2
        start = centre - step * (shape - 1) / 2
        z, y, x = (int(n) for n in shape)
        return Grid((z, y, x), self.affine.shifted(start).scaled(step))

    def to_canonical(self) -> tuple["Grid", Reorientation]:
        """The same voxels with axes nearest to Z Superior, Y Posterior, X Left, and how to get there."""
        cosines = STANDARD_AXES_LPS.T @ self.affine.axes_lps
        permutation = _best_permutation(np.abs(cosines))
        flips = tuple(bool(cosines[k, permutation[k]] < 0) for k in range(3))
        shape = tuple(self.shape_zyx[axis] for axis in permutation)
        start = np.zeros(3)
        matrix = self.affine.matrix.copy()
        for k, axis in enumerate(permutation):
            sign = -1.0 if flips[k] else 1.0
            matrix[:3, k] = sign * self.affine.matrix[:3, axis]
            start[axis] = self.shape_zyx[axis] - 1 if flips[k] else 0
        matrix[:3, 3] = self.affine.to_points(start)
        reorientation = Reorientation(permutation, (flips[0], flips[1], flips[2]))
        return Grid((shape[0], shape[1], shape[2]), Affine(matrix)), reorientation

    def to_json(self) -> dict[str, Any]:
        """``{"shape_zyx": …, "affine_lps": …}``: exact."""
        return {"shape_zyx": list(self.shape_zyx), "affine_lps": self.affine.to_list()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Grid":
        """The inverse of `to_json`."""
        z, y, x = record["shape_zyx"]
        return cls((z, y, x), Affine(np.array(record["affine_lps"], dtype=np.float64)))


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a grid.

    Args:
        array: (Z, Y, X).
        grid: Of the same shape.

    Raises:
        GeometryError: If the shapes differ.
    """

    array: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape_zyx:
            raise GeometryError(
                f"volume: array and grid must have one shape; "
                f"got {self.array.shape} and {self.grid.shape_zyx}."
            )

    def cropped(self, box: Box, fill: float = 0) -> "Volume":
        """The part inside ``box``; what lies outside this volume is ``fill``."""
        return Volume(crop_or_pad(self.array, box, fill), self.grid.cropped(box))

    def to_canonical(self) -> tuple["Volume", Reorientation]:
        """The same voxels with axes nearest to Z Superior, Y Posterior, X Left; a view, no copy."""
        grid, reorientation = self.grid.to_canonical()
        return Volume(reorientation.apply(self.array), grid), reorientation


def _best_permutation(weights: FloatArray) -> tuple[int, int, int]:
    """The permutation p that maximises ``sum(weights[k, p[k]])``."""
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(orders, key=lambda p: sum(float(weights[k, p[k]]) for k in range(3)))
