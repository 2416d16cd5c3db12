"""A mask to polygons in the patient: along pixel edges, so that every reader gets the same voxels back."""

from collections.abc import Iterator

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.contour_kernels import trace_plane
from consilium.geometry.volume import Grid
from consilium.types import Array, FloatArray


def polygons_from_mask(mask: Array, grid: Grid) -> list[FloatArray]:
    """Outline the voxels inside; see `iterate_outlines`. Empty list for an empty mask."""
    return [polygon for _, polygons in iterate_outlines(mask, grid) for polygon in polygons]


def iterate_outlines(mask: Array, grid: Grid) -> Iterator[tuple[int, list[FloatArray]]]:
    """Slice by slice, the polygons along the edges of the pixels inside.

    Read back at voxel centres they give the mask again, whether the reader combines the polygons of a slice
    by exclusive or or by union: a hole is part of its outline through a keyhole (DICOM PS3.3 C.8.8.6.3), and
    no two outlines overlap. Points on a straight edge are left out; every polygon has at least four points.
    Pixels that touch only at a corner get outlines of their own.

    Args:
        mask: (Z, Y, X) bool, or any number where not 0 is inside.
        grid: Of the same shape.

    Yields:
        Slice index and its polygons, each (N, 3) float64, points (x, y, z) in LPS mm; slices without any are
        left out.

    Raises:
        GeometryError: If the shapes differ.
    """
    if mask.shape != grid.shape_zyx:
        raise GeometryError(
            f"outlines: mask and grid must have one shape; got {mask.shape} and {grid.shape_zyx}."
        )
    for z in range(mask.shape[0]):
        plane = mask[z] != 0
        rows = np.flatnonzero(plane.any(axis=1))
        if not len(rows):
            continue
        columns = np.flatnonzero(plane.any(axis=0))
        y, x = int(rows[0]), int(columns[0])
        part = plane[y : rows[-1] + 1, x : columns[-1] + 1]
        corners, starts = trace_plane(np.pad(part.view(np.uint8), 1))
        index = np.empty((len(corners), 3))
        index[:, 0] = z
        index[:, 1:] = corners + np.array([y - 1.5, x - 1.5])
        yield z, np.split(grid.affine.to_points(index), starts[1:-1])
