"""How sure a prediction is: entropy of every voxel, and one figure per structure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.types import FloatArray

SMALLEST = 1e-7
PAIRS_NEEDED = 8
CARD_ENTRY = "doubt_calibration"


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


def compute_doubt(probability: FloatArray, calibration: "Calibration | None" = None) -> float:
    """One minus the Dice to be expected, calibrated where that is possible; NaN if nothing was found."""
    promised = expected_dice(probability)
    return 1.0 - (promised if calibration is None else calibration.apply(promised))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From the Dice that a model promises to the one that it kept on validation patients: a straight line."""

    slope: float
    intercept: float
    pairs: int

    def apply(self, promised: float) -> float:
        """The Dice to be expected, in [0, 1]; NaN stays NaN."""
        return (
            promised if promised != promised else min(1.0, max(0.0, self.intercept + self.slope * promised))
        )

    def to_json(self) -> dict[str, float]:
        """JSON-able; `calibration_of` reads it back."""
        return dict(vars(self))


def fit_calibration(promised: Sequence[float], kept: Sequence[float]) -> Calibration | None:
    """The least-squares line of kept on promised Dice; its slope is kept between 0 and 3.

    Returns:
        None with fewer than `PAIRS_NEEDED` pairs of numbers, or where all promises are alike.
    """
    pairs = [(p, k) for p, k in zip(promised, kept, strict=True) if math.isfinite(p) and math.isfinite(k)]
    if len(pairs) < PAIRS_NEEDED:
        return None
    x, y = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    spread = float(((x - x.mean()) ** 2).sum())
    if spread < 1e-6:
        return None
    slope = min(3.0, max(0.0, float(((x - x.mean()) * (y - y.mean())).sum()) / spread))
    return Calibration(slope=slope, intercept=float(y.mean() - slope * x.mean()), pairs=len(pairs))


def calibration_of(card: Mapping[str, Any]) -> Calibration | None:
    """The calibration that a model's card holds; None if it holds none."""
    record = card.get(CARD_ENTRY)
    if not isinstance(record, Mapping):
        return None
    try:
        return Calibration(
            slope=float(record["slope"]), intercept=float(record["intercept"]), pairs=int(record["pairs"])
        )
    except (KeyError, TypeError, ValueError):
        return None
