"""The map from voxel indices to millimetres in the patient."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.errors import GeometryError
from consilium.types import Array, FloatArray, Triple

MIN_VOXEL_VOLUME_MM3 = 1e-9


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map from an index ``(z, y, x)`` to a point ``(x, y, z)`` in LPS millimetres.

    ``point_lps_mm = matrix @ (z, y, x, 1)``. Mind the order: indices are in array order, points in
    DICOM's. Integer indices are voxel **centres**. Oblique, permuted, flipped and sheared (gantry tilt)
    grids are all legal.

    Args:
        matrix: (4, 4), finite, invertible, last row (0, 0, 0, 1).

    Raises:
        GeometryError: If the matrix is not such a map.

    Example:
        >>> affine = Affine.from_spacing((3.0, 1.0, 1.0), origin_lps_mm=(-10.0, 0.0, 5.0))
        >>> affine.to_points((2, 0, 4)).tolist()
        [-6.0, 0.0, 11.0]
    """

    matrix: FloatArray

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise GeometryError(f"affine: the matrix must be (4, 4); got {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise GeometryError("affine: every entry must be finite; found NaN or infinity.")
        if not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise GeometryError(f"affine: the last row must be (0, 0, 0, 1); got {tuple(matrix[3])}.")
        volume = abs(float(np.linalg.det(matrix[:3, :3])))
        if volume < MIN_VOXEL_VOLUME_MM3:
            raise GeometryError(f"affine: a voxel must have a volume; the matrix gives {volume:.3g} mm³.")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def from_spacing(
        cls,
        spacing_zyx_mm: Triple,
        *,
        origin_lps_mm: Triple = (0.0, 0.0, 0.0),
        axes_lps: FloatArray | None = None,
    ) -> "Affine":
        """Build from spacing, origin and the directions of the array axes.

        Args:
            spacing_zyx_mm: Distance between neighbours along Z, Y and X; positive.
            origin_lps_mm: Centre of voxel (0, 0, 0).
            axes_lps: (3, 3); **column** k is the unit vector (x, y, z) along which array axis k (Z, Y, X)
                runs. Default: Z to Superior, Y to Posterior, X to Left.
        """
        if min(spacing_zyx_mm) <= 0:
            raise GeometryError(f"affine: spacing must be positive; got {spacing_zyx_mm} mm (z, y, x).")
        axes = STANDARD_AXES_LPS if axes_lps is None else np.asarray(axes_lps, dtype=np.float64)
        matrix = np.eye(4)
        matrix[:3, :3] = axes * np.asarray(spacing_zyx_mm, dtype=np.float64)
        matrix[:3, 3] = origin_lps_mm
        return cls(matrix)

    @classmethod
    def from_dicom(
        cls,
        *,
        position_lps_mm: Triple,
        orientation: tuple[float, ...],
        pixel_spacing_mm: tuple[float, float],
        slice_step_lps_mm: Triple,
    ) -> "Affine":
        """Build from the attributes of a series (DICOM PS3.3 C.7.6.2.1.1).

        Args:
            position_lps_mm: Image Position (Patient) of the first slice.
            orientation: Image Orientation (Patient): six direction cosines, first along a row (X), then
                down a column (Y).
            pixel_spacing_mm: Pixel Spacing: distance between **rows** (Y), then between columns (X).
            slice_step_lps_mm: Vector from one slice's position to the next one's; need not be normal to
                the slice (gantry tilt).
        """
        row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
        matrix = np.eye(4)
        matrix[:3, 0] = slice_step_lps_mm
        matrix[:3, 1] = column * pixel_spacing_mm[0]
        matrix[:3, 2] = row * pixel_spacing_mm[1]
        matrix[:3, 3] = position_lps_mm
        return cls(matrix)

    @property
    def spacing_zyx_mm(self) -> Triple:
        """Distance between neighbouring voxel centres along Z, Y and X."""
        z, y, x = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def axes_lps(self) -> FloatArray:
        """(3, 3); column k is the unit vector along array axis k (Z, Y, X)."""
        axes: FloatArray = self.matrix[:3, :3] / np.linalg.norm(self.matrix[:3, :3], axis=0)
        return axes

    @property
    def origin_lps_mm(self) -> Triple:
        """Centre of voxel (0, 0, 0)."""
        x, y, z = self.matrix[:3, 3]
        return float(x), float(y), float(z)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, shear included."""
        return abs(float(np.linalg.det(self.matrix[:3, :3])))

    @property
    def slice_normal_lps(self) -> FloatArray:
        """Unit vector normal to the (Y, X) plane, pointing towards growing Z."""
        normal = np.cross(self.matrix[:3, 2], self.matrix[:3, 1])
        normal /= np.linalg.norm(normal)
        return normal if normal @ self.matrix[:3, 0] > 0 else -normal

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles within 0.01 degrees."""
        gram = self.axes_lps.T @ self.axes_lps
        return bool(np.abs(gram - np.eye(3)).max() > 1.75e-4)

    def to_points(self, index_zyx: Any) -> FloatArray:
        """Points (..., 3) in LPS mm of indices (..., 3) in (z, y, x)."""
        index = np.asarray(index_zyx, dtype=np.float64)
        return index @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_indices(self, points_lps_mm: Any) -> FloatArray:
        """Fractional indices (..., 3) in (z, y, x) of points (..., 3) in LPS mm."""
        points = np.asarray(points_lps_mm, dtype=np.float64) - self.matrix[:3, 3]
        return points @ np.linalg.inv(self.matrix[:3, :3]).T

    def shifted(self, index_zyx: Any) -> "Affine":
        """The affine whose voxel (0, 0, 0) lies at this one's ``index_zyx`` (may be fractional)."""
        matrix = self.matrix.copy()
        matrix[:3, 3] = self.to_points(index_zyx)
        return Affine(matrix)

    def scaled(self, step_zyx: Any) -> "Affine":
        """The affine whose unit steps are ``step_zyx`` of this one's, from the same voxel (0, 0, 0)."""
        matrix = self.matrix.copy()
        matrix[:3, :3] = matrix[:3, :3] * np.asarray(step_zyx, dtype=np.float64)
        return Affine(matrix)

    def differs_by_mm(self, other: "Affine", shape_zyx: tuple[int, int, int]) -> float:
        """Largest distance between the two positions of a corner of a grid of this shape, in mm."""
        top = np.asarray(shape_zyx) - 1
        corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3) * top
        return float(np.linalg.norm(self.to_points(corners) - other.to_points(corners), axis=1).max())

    def to_list(self) -> list[list[float]]:
        """The matrix as nested lists, for JSON; `float` round-trips it exactly."""
        rows: list[list[float]] = self.matrix.tolist()
        return rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash(self.matrix.tobytes())

    def __repr__(self) -> str:
        spacing = tuple(round(s, 4) for s in self.spacing_zyx_mm)
        origin = tuple(round(o, 3) for o in self.origin_lps_mm)
        return f"Affine(spacing_zyx_mm={spacing}, origin_lps_mm={origin})"


STANDARD_AXES_LPS: Array = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=np.float64)
"""Columns: Z to Superior (0, 0, 1), Y to Posterior (0, 1, 0), X to Left (1, 0, 0)."""
