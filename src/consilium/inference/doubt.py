"""How sure a prediction is: entropy of every voxel, and one figure per structure."""

import math

import numpy as np

from consilium.types import FloatArray

SMALLEST = 1e-7


def entropy_bits(probability: FloatArray) -> FloatArray:
    """Entropy of a yes-or-no question per voxel: 0 where the model is sure, 1 at even odds."""
    p = np.clip(probability, SMALLEST, 1 - SMALLEST)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), dtype=np.float32)


def expected_dice(probability: FloatArray, threshold: float = 0.5) -> float:
    """The Dice that the mask would have if the probabilities were right.

    With M the voxels at or above ``threshold``: twice the probability inside M over the voxels of M plus all
    probability.

    Returns:
        In [0, 1]; NaN if nothing reaches the threshold.
    """
    inside = probability >= threshold
    voxels = int(np.count_nonzero(inside))
    if not voxels:
        return math.nan
    return float(2 * probability[inside].sum(dtype=np.float64) / (voxels + probability.sum(dtype=np.float64)))


def compute_doubt(probability: FloatArray) -> float:
    """One minus `expected_dice`; NaN if nothing was found."""
    return 1.0 - expected_dice(probability)
