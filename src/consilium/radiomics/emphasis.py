"""The features that run lengths, zone sizes, zone distances and dependence counts share."""

import numpy as np

from consilium.radiomics.directions import Values
from consilium.types import Array, FloatArray

NAMES = (
    "small",
    "large",
    "low",
    "high",
    "small_low",
    "small_high",
    "large_low",
    "large_high",
    "level_nonuniformity",
    "level_nonuniformity_norm",
    "size_nonuniformity",
    "size_nonuniformity_norm",
    "percentage",
    "level_variance",
    "size_variance",
    "entropy",
    "energy",
)
"""Order of IBSI's tables, the same in all four families; only dependence counts have the last."""


def compute_emphasis(table: Array, voxels: int, tags: tuple[str, ...]) -> Values | None:
    """Features of a matrix given by its non-zero entries.

    Args:
        table: (N, 3) integers: grey level ≥ 1, size ≥ 1 (or length, distance, dependence), count ≥ 1.
        voxels: Number of voxels that the percentage refers to.
        tags: What the family calls `NAMES`; as many of them as it has.

    Returns:
        Tag → value; None for an empty matrix.
    """
    if not len(table):
        return None
    level, size, count = table.T.astype(np.float64)
    total = count.sum()
    share = count / total
    level2, size2 = level**2, size**2
    of_level, of_size = _margin(table[:, 0], count), _margin(table[:, 1], count)
    level_sum, size_sum = (of_level**2).sum(), (of_size**2).sum()
    values = (
        (share / size2).sum(),
        (share * size2).sum(),
        (share / level2).sum(),
        (share * level2).sum(),
        (share / (size2 * level2)).sum(),
        (share * level2 / size2).sum(),
        (share * size2 / level2).sum(),
        (share * size2 * level2).sum(),
        level_sum / total,
        level_sum / total**2,
        size_sum / total,
        size_sum / total**2,
        total / voxels,
        (share * (level - (share * level).sum()) ** 2).sum(),
        (share * (size - (share * size).sum()) ** 2).sum(),
        -(share * np.log2(share)).sum(),
        (share**2).sum(),
    )
    return {tag: float(value) for tag, value in zip(tags, values, strict=False)}


def table_of(counts: Array) -> Array:
    """(N, 3) table of a dense (levels, sizes) matrix whose indices start at 1."""
    level, size = np.nonzero(counts)
    return np.stack([level + 1, size + 1, counts[level, size]], axis=1)


def count_rows(level: Array, size: Array) -> Array:
    """(N, 3) table of how often each pair (level, size) occurs."""
    if not len(level):
        return np.zeros((0, 3), np.int64)
    width = int(size.max()) + 1
    pair, counts = np.unique(level.astype(np.int64) * width + size, return_counts=True)
    return np.stack([pair // width, pair % width, counts], axis=1)


def _margin(index: Array, count: FloatArray) -> FloatArray:
    """Sums of counts over equal indices."""
    sums: FloatArray = np.bincount(index - index.min(), weights=count).astype(np.float64)
    return sums
