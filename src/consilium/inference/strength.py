"""How far a network for adaptation is followed: per structure a part of what it would change."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from consilium.inference.preprocess import PRIOR_SOFTNESS_MM
from consilium.types import FloatArray

CARD_ENTRY = "prior_strength"
CHOICES = (0.0, 0.5, 1.0)
"""Of the strength: the earlier contour stays, the mean of both decides, or the network."""

LEAST_ODDS = 1e-6


def strengths_of(card: Mapping[str, Any]) -> dict[str, float] | None:
    """Structure -> strength, as chosen on the validation patients; None in a model without."""
    record = card.get(CARD_ENTRY)
    if not isinstance(record, Mapping):
        return None
    return {str(name): min(1.0, max(0.0, float(value))) for name, value in record.items()}


def follow(probability: FloatArray, depth_mm: FloatArray, strength: float) -> FloatArray:
    """Between the earlier contour and the network, by their logits.

    Args:
        probability: (Z, Y, X) as the network says.
        depth_mm: (Z, Y, X) in the earlier contour; see `consilium.inference.preprocess.depth_in`.
        strength: 0: the earlier contour; 1: the network.

    Returns:
        (Z, Y, X) float32 in [0, 1].
    """
    if strength >= 1.0:
        return probability
    p = np.clip(probability, LEAST_ODDS, 1 - LEAST_ODDS)
    logit = strength * np.log(p / (1 - p)) + (1 - strength) * (depth_mm / PRIOR_SOFTNESS_MM)
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float32)
