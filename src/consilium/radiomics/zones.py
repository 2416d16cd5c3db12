"""IBSI families 9SAK and VMDZ: zones of equal grey level, their size and depth (GLSZM, GLDZM)."""

import numpy as np
from scipy import ndimage

from consilium.geometry.compiled import compiled
from consilium.radiomics.definitions import family_tags
from consilium.radiomics.directions import Values, average, neighbourhood, tagged
from consilium.radiomics.emphasis import compute_emphasis, count_rows
from consilium.radiomics.region import Region
from consilium.radiomics.settings import RadiomicsSettings
from consilium.types import Array, Mask

SIZE_TAGS = family_tags("szm_")
DISTANCE_TAGS = family_tags("dzm_")


def compute_zones(region: Region, settings: RadiomicsSettings) -> tuple[Values, Values]:
    """Features of zone sizes and of zone distances.

    A zone is a connected set of equal level: 8 neighbours in a slice, 26 in the volume. Its distance is that
    of its nearest voxel to the outside of the **contour**, in steps through voxel faces, 1 at the rim; voxels
    left out by intensity do not make a rim, the edge of the image does.

    Returns:
        Size features and distance features, each with the suffixes 2D, 2_5D and 3D as wanted.

    Source:
        IBSI reference manual, "Grey level size zone based features" (9SAK) and "Grey level distance
        zone based features" (VMDZ).
    """
    core = region.core
    levels, mask = core.levels, core.mask
    sizes: Values = {}
    distances: Values = {}
    if {"2D", "2_5D"} & set(settings.planes):
        offsets = neighbourhood(1, planar=True)
        held = [z for z in range(len(levels)) if (levels[z] > 0).any()]
        slices = [find_zones(levels[z : z + 1], _depth(mask[z])[None], offsets) for z in held]
        voxels = [int((levels[z] > 0).sum()) for z in held]
        for way in {"2D", "2_5D"} & set(settings.planes):
            parts = list(zip(slices, voxels, strict=True))
            if way == "2_5D":
                parts = [(np.concatenate(slices), sum(voxels))]
            sizes |= tagged(average(_size(*part) for part in parts), way, SIZE_TAGS)
            distances |= tagged(average(_distance(*part) for part in parts), way, DISTANCE_TAGS)
    if "3D" in settings.planes:
        zones = find_zones(levels, _depth(mask), neighbourhood(1, planar=False))
        voxel_count = int((levels > 0).sum())
        sizes |= tagged(_size(zones, voxel_count) or {}, "3D", SIZE_TAGS)
        distances |= tagged(_distance(zones, voxel_count) or {}, "3D", DISTANCE_TAGS)
    return sizes, distances


def _size(zones: Array, voxels: int) -> Values | None:
    return compute_emphasis(count_rows(zones[:, 0], zones[:, 1]), voxels, SIZE_TAGS)


def _distance(zones: Array, voxels: int) -> Values | None:
    return compute_emphasis(count_rows(zones[:, 0], zones[:, 2]), voxels, DISTANCE_TAGS)


def _depth(mask: Mask) -> Array:
    """Steps through pixel or voxel faces to the outside of the contour; 1 at its rim."""
    padded = np.pad(mask, 1)
    depth = ndimage.distance_transform_cdt(padded, metric="taxicab")
    return np.ascontiguousarray(depth[tuple(slice(1, -1) for _ in mask.shape)])


def find_zones(levels: Array, depth: Array, offsets: Array) -> Array:
    """(N, 3): level, size and least depth of every connected zone of equal level."""
    return _walk_zones(levels, depth, offsets, int(np.count_nonzero(levels)))


@compiled
def _walk_zones(levels: Array, depth: Array, offsets: Array, voxels: int) -> Array:
    nz, ny, nx = levels.shape
    seen = np.zeros(levels.shape, np.bool_)
    stack = np.empty(voxels, np.int64)
    zones = np.empty((voxels, 3), np.int64)
    found = 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                level = levels[z, y, x]
                if level == 0 or seen[z, y, x]:
                    continue
                seen[z, y, x] = True
                stack[0] = (z * ny + y) * nx + x
                top, size, least = 1, 0, depth[z, y, x]
                while top:
                    top -= 1
                    a, b, c = stack[top] // (ny * nx), stack[top] // nx % ny, stack[top] % nx
                    size += 1
                    least = min(least, depth[a, b, c])
                    for k in range(len(offsets)):
                        u, v, w = a + offsets[k, 0], b + offsets[k, 1], c + offsets[k, 2]
                        if not (0 <= u < nz and 0 <= v < ny and 0 <= w < nx):
                            continue
                        if levels[u, v, w] == level and not seen[u, v, w]:
                            seen[u, v, w] = True
                            stack[top] = (u * ny + v) * nx + w
                            top += 1
                zones[found, 0], zones[found, 1], zones[found, 2] = level, size, least
                found += 1
    return zones[:found].copy()
