"""Where every point of the repeat CT lay on the planning day."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray

SLAB_VOXELS = 2_000_000
"""Voxels that are warped at a time: keeps the memory flat."""


@dataclass(frozen=True, eq=False)
class Deformation:
    """From a point of the repeat CT to the same tissue in the planning CT: deform, then move rigidly.

    ``planning = rigid @ (point + displacement(point))``. It points backwards, from the new image to the old
    one, because that is what warping an image needs. Outside ``grid`` the displacement of its edge holds.

    Args:
        displacement_lps_mm: (3, Z, Y, X) float32: x, y, z.
        grid: Of the displacement, in the repeat CT's frame.
        rigid: (4, 4): a rotation and a shift from the repeat CT's frame to the planning CT's.

    Raises:
        GeometryError: Shapes that do not fit, or a matrix that is no rigid movement.
    """

    displacement_lps_mm: FloatArray
    grid: Grid
    rigid: FloatArray

    def __post_init__(self) -> None:
        if self.displacement_lps_mm.shape != (3, *self.grid.shape_zyx):
            raise GeometryError(
                f"deformation: the displacement must be (3, Z, Y, X) on its grid; got "
                f"{self.displacement_lps_mm.shape} and {self.grid.shape_zyx}."
            )
        turn = np.asarray(self.rigid)[:3, :3]
        if self.rigid.shape != (4, 4) or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-6:
            raise GeometryError("deformation: rigid must be a rotation and a shift; it stretches.")

    @classmethod
    def identity(cls, grid: Grid) -> "Deformation":
        """Every point stays."""
        return cls(np.zeros((3, *grid.shape_zyx), np.float32), grid, np.eye(4))

    @cached_property
    def jacobian(self) -> FloatArray:
        """(Z, Y, X) float32: planning volume per repeat volume; 1 keeps it, 0 or less is folded.

        Central differences between voxels of ``grid``, one-sided at its faces. Its inverse is how much tissue
        has grown since the planning day.
        """
        return jacobian_determinant(self.displacement_lps_mm, self.grid)

    @cached_property
    def planning_points(self) -> FloatArray:
        """(Z, Y, X, 3) float32: the planning point of each voxel of ``grid``."""
        shape = self.grid.shape_zyx
        points = slab_points(self.grid.affine, shape, 0, shape[0]) + self.displacement_lps_mm.reshape(3, -1).T
        moved = points @ self.rigid[:3, :3].T + self.rigid[:3, 3]
        return moved.astype(np.float32).reshape(*shape, 3)

    def without_displacement(self) -> "Deformation":
        """Only the rigid movement."""
        return Deformation(np.zeros_like(self.displacement_lps_mm), self.grid, self.rigid)

    def to_planning(self, points_lps_mm: FloatArray) -> FloatArray:
        """Points (..., 3) of the repeat CT in the planning CT, interpolated linearly."""
        points = np.asarray(points_lps_mm, dtype=np.float64)
        index = self.grid.affine.to_indices(points).reshape(-1, 3)
        field = torch.from_numpy(self.displacement_lps_mm)
        moved = sample(field, torch.from_numpy(index)).numpy().T.reshape(points.shape)
        deformed = points + moved
        result: FloatArray = deformed @ self.rigid[:3, :3].T + self.rigid[:3, 3]
        return result

    def warp(self, planning: Volume, grid: Grid, *, fill: float) -> Volume:
        """A planning image on a grid of the repeat CT, linearly interpolated, float32.

        Args:
            planning: Any grid of the planning CT.
            grid: Any grid of the repeat CT.
            fill: Value of what lies outside the planning image.
        """
        source = torch.from_numpy(np.ascontiguousarray(planning.array)).to(torch.float32)[None]
        # One linear map from points of the repeat CT to voxels of the planning image.
        to_source = np.linalg.inv(planning.grid.affine.matrix) @ self.rigid
        field = torch.from_numpy(self.displacement_lps_mm)
        result = np.empty(grid.shape_zyx, dtype=np.float32)
        per_slice = grid.shape_zyx[1] * grid.shape_zyx[2]
        step = max(1, SLAB_VOXELS // per_slice)
        for start in range(0, grid.shape_zyx[0], step):
            stop = min(start + step, grid.shape_zyx[0])
            points = torch.from_numpy(slab_points(grid.affine, grid.shape_zyx, start, stop))
            at = points @ torch.from_numpy(np.linalg.inv(self.grid.affine.matrix)[:3, :3].T)
            at += torch.from_numpy(np.linalg.inv(self.grid.affine.matrix)[:3, 3])
            points += sample(field, at).T.to(torch.float64)
            index = points @ torch.from_numpy(to_source[:3, :3].T) + torch.from_numpy(to_source[:3, 3])
            value = sample(source, index)[0]
            top = torch.tensor(planning.grid.shape_zyx, dtype=torch.float64) - 0.5 + 1e-4
            outside = ((index < -0.5 - 1e-4) | (index > top)).any(dim=1)
            value[outside] = fill
            result[start:stop] = value.reshape(stop - start, *grid.shape_zyx[1:]).numpy()
        return Volume(result, grid)

    def total_displacement_mm(self) -> FloatArray:
        """(3, Z, Y, X) float32: planning point minus repeat point at each voxel of ``grid``."""
        shape = self.grid.shape_zyx
        points = slab_points(self.grid.affine, shape, 0, shape[0])
        total = self.planning_points.reshape(-1, 3) - points
        return np.ascontiguousarray(total.T.reshape(3, *shape), dtype=np.float32)


def slab_points(affine: Affine, shape_zyx: tuple[int, int, int], start: int, stop: int) -> FloatArray:
    """(N, 3) float64 points in LPS mm of the voxels of slices ``start`` to ``stop``."""
    _, ny, nx = shape_zyx
    matrix = affine.matrix
    z = np.arange(start, stop)[:, None, None, None] * matrix[:3, 0]
    y = np.arange(ny)[None, :, None, None] * matrix[:3, 1]
    x = np.arange(nx)[None, None, :, None] * matrix[:3, 2]
    return np.ascontiguousarray((z + y + x + matrix[:3, 3]).reshape(-1, 3))


def sample(field: Tensor, index_zyx: Tensor) -> Tensor:
    """Linear interpolation of (C, Z, Y, X) at fractional indices (N, 3): (C, N); edges hold outside."""
    shape = torch.tensor(field.shape[1:], dtype=index_zyx.dtype)
    scaled = 2 * index_zyx / (shape - 1).clamp(min=1) - 1
    # An axis of one voxel: everything lies on it.
    scaled = torch.where(shape > 1, scaled, torch.zeros_like(scaled))
    at = scaled.flip(-1).to(field.dtype)[None, None, None]
    found = functional.grid_sample(
        field[None], at, mode="bilinear", padding_mode="border", align_corners=True
    )
    result: Tensor = found[0, :, 0, 0]
    return result


def jacobian_determinant(displacement_lps_mm: Array, grid: Grid) -> FloatArray:
    """(Z, Y, X) float32: determinant of the derivative of ``point + displacement``; see `Deformation`."""
    inverse = np.linalg.inv(grid.affine.matrix[:3, :3])
    by_index = [
        np.stack([_difference(component, axis) for axis in range(3)]) for component in displacement_lps_mm
    ]
    rows = [[sum(d[a] * inverse[a, k] for a in range(3)) for k in range(3)] for d in by_index]
    a, b, c = ([rows[i][k] + (1.0 if i == k else 0.0) for k in range(3)] for i in range(3))
    determinant = (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    return np.asarray(determinant, dtype=np.float32)


def _difference(component: Array, axis: int) -> Array:
    if component.shape[axis] < 2:
        return np.zeros_like(component)
    return np.asarray(np.gradient(component, axis=axis))
