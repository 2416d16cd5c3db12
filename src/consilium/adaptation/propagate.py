"""Structures of the planning CT on the repeat CT: their signed distance is warped."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from consilium.adaptation.deformation import Deformation
from consilium.errors import GeometryError
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid, Volume
from consilium.inference.preprocess import PRIOR_REACH_MM, depth_in
from consilium.metrics.distance import distances_to_nearest
from consilium.types import FloatArray, Mask, Shape

REACH_VOXELS = 2
"""How far beyond a structure's box its distance is known, in voxels of the planning CT."""


@dataclass(frozen=True, eq=False)
class StructureShape:
    """A structure of the planning CT, ready to be carried to any grid.

    Args:
        distance_mm: Positive inside, negative outside, exact within a voxel of the surface and of the right
            sign beyond; only around the structure.
    """

    distance_mm: Volume

    @classmethod
    def of(cls, mask: Mask, grid: Grid) -> "StructureShape | None":
        """From its mask (Z, Y, X) on the planning CT's grid; None for an empty mask."""
        if mask.shape != grid.shape_zyx:
            raise GeometryError(
                f"propagation: mask and grid must have one shape; got {mask.shape} and {grid.shape_zyx}."
            )
        box = Box.around(mask)
        if box is None:
            return None
        inside = np.pad(mask[box.slices()], REACH_VOXELS)
        distance = signed_distance(inside, grid.spacing_zyx_mm)
        return cls(Volume(distance, grid.cropped(box.grown((REACH_VOXELS,) * 3))))

    def carried(self, deformation: Deformation, grid: Grid) -> Mask:
        """Where the structure is on a grid of the repeat CT: bool (Z, Y, X)."""
        inside = np.zeros(grid.shape_zyx, dtype=np.bool_)
        for box, distance in self._distance(deformation, grid):
            inside[box.slices()] = distance > 0
        return inside

    def depth_carried(self, deformation: Deformation, grid: Grid) -> FloatArray:
        """The same as `consilium.inference.preprocess.depth_in`, between voxels too where the surface is."""
        depth = depth_in(self.carried(deformation, grid), grid.spacing_zyx_mm)
        known = min(*self.distance_mm.grid.spacing_zyx_mm, PRIOR_REACH_MM)
        for box, distance in self._distance(deformation, grid):
            exact = np.abs(distance) <= known
            depth[box.slices()][exact] = distance[exact]
        return depth

    def _distance(self, deformation: Deformation, grid: Grid) -> Iterator[tuple[Box, FloatArray]]:
        """The warped distance in the one box of ``grid`` that may hold the structure; nothing without one."""
        target = self._reached(deformation, grid)
        if target is not None:
            lowest = float(self.distance_mm.array.min())
            part = deformation.warp(self.distance_mm, grid.cropped(target), fill=lowest)
            yield target, np.asarray(part.array)

    def _reached(self, deformation: Deformation, grid: Grid) -> Box | None:
        """The box of ``grid`` that may hold the structure; None where nothing of it can be.

        Looked for on the deformation's grid: every voxel whose planning point lies in the structure's box or
        within a voxel of it.
        """
        source = self.distance_mm.grid
        index = source.affine.to_indices(deformation.planning_points)
        # How far neighbouring voxels of the deformation's grid may lie apart there.
        slack = 2 * max(deformation.grid.spacing_zyx_mm) / np.asarray(source.spacing_zyx_mm) + 1
        top = np.asarray(source.shape_zyx) - 1
        near = ((index >= -slack) & (index <= top + slack)).all(axis=-1)
        found = Box.around(np.asarray(near))
        if found is None:
            return None
        shape = deformation.grid.shape_zyx
        # Beyond the deformation's grid its edge holds: a box that meets a face goes on to the target's.
        low = [s if s > 0 else -(10**4) for s in found.start_zyx]
        high = [e if e < n else 10**4 for e, n in zip(found.stop_zyx, shape, strict=True)]
        return _box_on(deformation.grid, grid, np.array(low) - 1.0, np.array(high) + 0.0)


def signed_distance(mask: Mask, spacing_zyx_mm: tuple[float, float, float]) -> FloatArray:
    """(Z, Y, X) float32: distance to the nearest voxel of the other side; see `StructureShape`."""
    far = float(np.linalg.norm(spacing_zyx_mm)) * 2
    result = np.where(mask, np.float32(far), np.float32(-far))
    around = np.ones((3, 3, 3), dtype=np.bool_)
    outer = ndimage.binary_dilation(mask, around) & ~mask
    inner = mask & ndimage.binary_dilation(~mask, around)
    result[outer] = -distances_to_nearest(mask, np.argwhere(outer), spacing_zyx_mm)
    result[inner] = distances_to_nearest(~mask, np.argwhere(inner), spacing_zyx_mm)
    return result


def _box_on(source: Grid, target: Grid, low: FloatArray, high: FloatArray) -> Box | None:
    """The box of ``target`` that holds a box of ``source`` given by fractional corners; None if outside."""
    ends = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    corners = target.affine.to_indices(source.affine.to_points(low + ends * (high - low)))
    start = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    stop = np.minimum(np.ceil(corners.max(axis=0)) + 1, target.shape_zyx).astype(int)
    if (stop <= start).any():
        return None
    first: Shape = (int(start[0]), int(start[1]), int(start[2]))
    return Box(first, (int(stop[0]), int(stop[1]), int(stop[2])))
