"""Exact distances from points of a grid to the nearest marked voxel; compiled, with anisotropic spacing."""

import numpy as np

from consilium.geometry.compiled import compiled
from consilium.types import Array, FloatArray, Triple

FAR = np.int16(30000)
"""Steps along the first axis at which no marked voxel was met."""


def distances_to_nearest(marked: Array, points: Array, spacing_zyx_mm: Triple) -> FloatArray:
    """Euclidean distance in mm from each point to the nearest marked voxel's centre.

    Exact: a scan along Z, a lower envelope of parabolas along X (Felzenszwalb and Huttenlocher 2012), and
    per point a search along Y that stops where no nearer voxel can follow.

    Args:
        marked: (Z, Y, X) bool; Z, Y and X below 30000.
        points: (N, 3) integer voxel indices (z, y, x).
        spacing_zyx_mm: Voxel spacing, positive.

    Returns:
        (N,) float64, ≥ 0; inf everywhere if nothing is marked.
    """
    sz, sy, sx = (float(s) for s in spacing_zyx_mm)
    if not len(points):
        return np.zeros(0)
    squared = _squared_in_plane(_steps_along_z(marked), sz, sx)
    return _search_along_y(squared, np.ascontiguousarray(points, np.int64), sy)


def _steps_along_z(marked: Array) -> Array:
    """(Z, Y, X) int16: voxels to the nearest marked one in the same column, or `FAR`."""
    steps = np.where(marked, np.int16(0), FAR)
    for z in range(1, len(steps)):
        np.minimum(steps[z], steps[z - 1] + np.int16(1), out=steps[z])
    for z in range(len(steps) - 2, -1, -1):
        np.minimum(steps[z], steps[z + 1] + np.int16(1), out=steps[z])
    return steps


@compiled
def _squared_in_plane(steps: Array, sz: float, sx: float) -> FloatArray:
    """Squared distance within each (z, x) plane of constant y; inf where that plane holds no marked voxel."""
    nz, ny, nx = steps.shape
    out = np.empty((nz, ny, nx), np.float64)
    vertex = np.empty(nx, np.int64)
    start = np.empty(nx + 1, np.float64)
    height = np.empty(nx, np.float64)
    for z in range(nz):
        for y in range(ny):
            last = -1
            for x in range(nx):
                step = steps[z, y, x]
                if step >= 30000:
                    continue
                value = (step * sz) ** 2
                height[x] = value
                crossing = -np.inf
                while last >= 0:
                    v = vertex[last]
                    crossing = ((value - height[v]) / (sx * sx * (x - v)) + x + v) / 2
                    if crossing > start[last]:
                        break
                    last -= 1
                last += 1
                vertex[last] = x
                start[last] = crossing if last > 0 else -np.inf
            if last < 0:
                for x in range(nx):
                    out[z, y, x] = np.inf
                continue
            k = 0
            for x in range(nx):
                while k < last and start[k + 1] < x:
                    k += 1
                v = vertex[k]
                out[z, y, x] = ((x - v) * sx) ** 2 + height[v]
    return out


@compiled
def _search_along_y(squared: FloatArray, points: Array, sy: float) -> FloatArray:
    ny = squared.shape[1]
    out = np.empty(len(points), np.float64)
    for i in range(len(points)):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        best = squared[z, y, x]
        for offset in range(1, ny):
            extra = (offset * sy) ** 2
            if extra >= best:
                break
            if y >= offset:
                best = min(best, squared[z, y - offset, x] + extra)
            if y + offset < ny:
                best = min(best, squared[z, y + offset, x] + extra)
        out[i] = np.sqrt(best)
    return out
