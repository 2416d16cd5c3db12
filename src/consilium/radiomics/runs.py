"""IBSI family TP0I: how long equal grey levels run (GLRLM)."""

import numpy as np

from consilium.geometry.compiled import compiled
from consilium.radiomics.definitions import family_tags
from consilium.radiomics.directions import Values, aggregate_directions, tagged
from consilium.radiomics.emphasis import compute_emphasis, table_of
from consilium.radiomics.region import Region
from consilium.radiomics.settings import RadiomicsSettings
from consilium.types import Array

TAGS = family_tags("rlm_")


def compute_runs(region: Region, settings: RadiomicsSettings) -> Values:
    """Run length features in every wanted way of aggregation; runs go along neighbours at distance 1.

    Source:
        IBSI reference manual, "Grey level run length based features" (TP0I).
    """
    levels, highest = region.core.levels, region.level_count

    def count(part: Array, offsets: Array) -> Array:
        return count_runs(part, offsets, highest, max(levels.shape))

    found = aggregate_directions(levels, settings.aggregations, count, _compute, 1)
    values: Values = {}
    for way, features in found.items():
        values |= tagged(features, way, TAGS)
    return values


def _compute(counts: Array, voxels: int) -> Values | None:
    return compute_emphasis(table_of(counts), voxels, TAGS)


@compiled
def count_runs(levels: Array, offsets: Array, highest: int, longest: int) -> Array:
    """(directions, highest, longest): number of runs of level i + 1 and length j + 1."""
    nz, ny, nx = levels.shape
    counts = np.zeros((len(offsets), highest, longest), np.int64)
    for k in range(len(offsets)):
        dz, dy, dx = offsets[k, 0], offsets[k, 1], offsets[k, 2]
        for z in range(nz):
            for y in range(ny):
                for x in range(nx):
                    level = levels[z, y, x]
                    if level == 0:
                        continue
                    a, b, c = z - dz, y - dy, x - dx
                    before = 0 <= a < nz and 0 <= b < ny and 0 <= c < nx
                    if before and levels[a, b, c] == level:
                        continue
                    length = 1
                    a, b, c = z + dz, y + dy, x + dx
                    while 0 <= a < nz and 0 <= b < ny and 0 <= c < nx and levels[a, b, c] == level:
                        length += 1
                        a, b, c = a + dz, b + dy, c + dx
                    counts[k, level - 1, length - 1] += 1
    return counts
