"""IBSI family LFYI: how often grey levels stand side by side (GLCM)."""

import math

import numpy as np

from consilium.geometry.compiled import compiled
from consilium.radiomics.definitions import family_tags
from consilium.radiomics.directions import Values, aggregate_directions, tagged
from consilium.radiomics.region import Region
from consilium.radiomics.settings import RadiomicsSettings
from consilium.types import Array, FloatArray

TAGS = family_tags("cm_")


def compute_cooccurrence(region: Region, settings: RadiomicsSettings) -> Values:
    """Co-occurrence features in every wanted way of aggregation.

    Returns:
        Tag with the way as suffix → value; NaN where no two voxels are neighbours. In a flat region
        correlation is 1 and the first measure of information correlation 0.

    Source:
        IBSI reference manual, "Grey level co-occurrence based features" (LFYI).
    """
    levels, highest = region.core.levels, region.level_count

    def count(part: Array, offsets: Array) -> Array:
        return count_pairs(part, offsets, highest)

    found = aggregate_directions(levels, settings.aggregations, count, _compute, settings.distance)
    values: Values = {}
    for way, features in found.items():
        values |= tagged(features, way, TAGS)
    return values


@compiled
def count_pairs(levels: Array, offsets: Array, highest: int) -> Array:
    """(directions, highest, highest): how often levels i + 1 and j + 1 face each other; symmetric."""
    nz, ny, nx = levels.shape
    counts = np.zeros((len(offsets), highest, highest), np.int64)
    for k in range(len(offsets)):
        dz, dy, dx = offsets[k, 0], offsets[k, 1], offsets[k, 2]
        for z in range(max(0, -dz), min(nz, nz - dz)):
            for y in range(max(0, -dy), min(ny, ny - dy)):
                for x in range(max(0, -dx), min(nx, nx - dx)):
                    a = levels[z, y, x]
                    if a == 0:
                        continue
                    b = levels[z + dz, y + dy, x + dx]
                    if b:
                        counts[k, a - 1, b - 1] += 1
                        counts[k, b - 1, a - 1] += 1
    return counts


def _compute(counts: Array, voxels: int) -> Values | None:
    if not counts.any():
        return None
    return dict(zip(TAGS, _features(counts).tolist(), strict=True))


@compiled
def _features(counts: Array) -> FloatArray:
    """The features of `TAGS` of one symmetric matrix."""
    highest = len(counts)
    total = counts.sum()
    margin = np.zeros(highest)
    difference = np.zeros(highest)
    both = np.zeros(2 * highest - 1)
    out = np.zeros(25)
    for i in range(highest):
        for j in range(highest):
            if counts[i, j]:
                p = counts[i, j] / total
                margin[i] += p
                difference[abs(i - j)] += p
                both[i + j] += p
    mean = 0.0
    for i in range(highest):
        mean += (i + 1) * margin[i]
    entropy_margin = 0.0
    for i in range(highest):
        if margin[i] > 0:
            entropy_margin -= margin[i] * math.log2(margin[i])
    entropy = cross = 0.0
    variance = covariance = 0.0
    for i in range(highest):
        for j in range(highest):
            if not counts[i, j]:
                continue
            p = counts[i, j] / total
            gap = abs(i - j)
            centred = i + j + 2 - 2 * mean
            out[0] = max(out[0], p)
            variance += p * (i + 1 - mean) ** 2
            covariance += p * (i + 1 - mean) * (j + 1 - mean)
            entropy -= p * math.log2(p)
            cross -= p * math.log2(margin[i] * margin[j])
            out[10] += p * p
            out[11] += p * gap**2
            out[12] += p * gap
            out[13] += p / (1 + gap)
            out[14] += p / (1 + gap / highest)
            out[15] += p / (1 + gap**2)
            out[16] += p / (1 + (gap / highest) ** 2)
            if gap:
                out[17] += p / gap**2
            out[19] += p * (i + 1) * (j + 1)
            out[20] += p * centred**2
            out[21] += p * centred**3
            out[22] += p * centred**4
    out[1], out[2], out[3] = mean, variance, entropy
    out[4:7] = _mean_variance_entropy(difference, 0)
    out[7:10] = _mean_variance_entropy(both, 2)
    out[18] = covariance / variance if variance > 0 else 1.0
    # The matrix is symmetric, so HXY2 is twice the entropy of the margin.
    out[23] = (entropy - cross) / entropy_margin if entropy_margin > 0 else 0.0
    out[24] = math.sqrt(max(0.0, 1 - math.exp(-2 * (2 * entropy_margin - entropy))))
    return out


@compiled
def _mean_variance_entropy(share: FloatArray, first: int) -> FloatArray:
    mean = 0.0
    for k in range(len(share)):
        mean += share[k] * (k + first)
    variance = entropy = 0.0
    for k in range(len(share)):
        if share[k] > 0:
            variance += share[k] * (k + first - mean) ** 2
            entropy -= share[k] * math.log2(share[k])
    return np.array([mean, variance, entropy])
