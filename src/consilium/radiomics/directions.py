"""Which neighbours there are, and how features of slices and directions are put together."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from consilium.types import Array

Values = dict[str, float]


def directions_2d(distance: int = 1) -> Array:
    """(N, 3) offsets (0, dy, dx) at Chebyshev distance, one of each opposite pair; 4 at distance 1."""
    return directions_3d(distance, planar=True)


def directions_3d(distance: int = 1, *, planar: bool = False) -> Array:
    """(N, 3) offsets (dz, dy, dx) at Chebyshev distance, one of each opposite pair; 13 at distance 1."""
    reach = range(-distance, distance + 1)
    offsets = [
        (z, y, x)
        for z in ((0,) if planar else reach)
        for y in reach
        for x in reach
        if max(abs(z), abs(y), abs(x)) == distance and (z, y, x) > (0, 0, 0)
    ]
    return np.array(offsets, np.int64)


def neighbourhood(distance: int, *, planar: bool) -> Array:
    """(N, 3) offsets of all voxels within Chebyshev distance, the centre left out; 8 or 26 at distance 1."""
    reach = range(-distance, distance + 1)
    offsets = [
        (z, y, x) for z in ((0,) if planar else reach) for y in reach for x in reach if (z, y, x) != (0, 0, 0)
    ]
    return np.array(offsets, np.int64)


def average(values: Iterable[Values | None]) -> Values:
    """Mean of each feature over slices or directions; those without a matrix (None) do not count."""
    found = [v for v in values if v is not None]
    return {tag: float(np.mean([v[tag] for v in found])) for tag in (found[0] if found else ())}


def tagged(values: Values, aggregation: str, tags: Sequence[str]) -> Values:
    """Every tag with the aggregation's suffix; NaN where there was nothing to compute from."""
    return {f"{tag}_{aggregation}": values.get(tag, math.nan) for tag in tags}


def aggregate_directions(
    levels: Array,
    wanted: Sequence[str],
    count: Callable[[Array, Array], Array],
    compute: Callable[[Array, int], Values | None],
    distance: int,
) -> dict[str, Values]:
    """Features of matrices that have a direction, in each of IBSI's six ways.

    Args:
        levels: (Z, Y, X) grey levels, 0 outside.
        wanted: Ways, e.g. ``"2D_avg"``.
        count: (levels, offsets) → (directions, rows, columns) counts.
        compute: (counts, voxels) → features, None for an empty matrix; ``voxels`` counts each voxel once per
            direction merged.
        distance: Chebyshev distance of the offsets.

    Returns:
        Way → tag → value.
    """
    found: dict[str, Values] = {}
    flat = [way for way in wanted if not way.startswith("3D")]
    if flat:
        offsets = directions_2d(distance)
        slices = [levels[z : z + 1] for z in range(len(levels)) if (levels[z] > 0).any()]
        counts = [count(part, offsets) for part in slices]
        voxels = [int((part > 0).sum()) for part in slices]
        pairs = list(zip(counts, voxels, strict=True))
        if "2D_avg" in flat:
            found["2D_avg"] = average(compute(one, n) for matrices, n in pairs for one in matrices)
        if "2D_comb" in flat:
            found["2D_comb"] = average(compute(c.sum(axis=0), n * len(offsets)) for c, n in pairs)
        merged, total = np.sum(counts, axis=0), sum(voxels)
        if "2_5D_avg" in flat:
            found["2_5D_avg"] = average(compute(one, total) for one in merged)
        if "2_5D_comb" in flat:
            found["2_5D_comb"] = compute(merged.sum(axis=0), total * len(offsets)) or {}
    if len(flat) < len(wanted):
        offsets = directions_3d(distance)
        matrices, total = count(levels, offsets), int((levels > 0).sum())
        if "3D_avg" in wanted:
            found["3D_avg"] = average(compute(one, total) for one in matrices)
        if "3D_comb" in wanted:
            found["3D_comb"] = compute(matrices.sum(axis=0), total * len(offsets)) or {}
    return found
