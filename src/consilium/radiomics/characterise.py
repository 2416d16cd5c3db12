"""A small model from features to a yes or no, judged by nested cross-validation against the diameter."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from consilium.errors import ConfigurationError, DataError
from consilium.radiomics.targets import Cohort
from consilium.types import Array, FloatArray, Progress, no_progress

DIAMETER = "morph_diam"
SMALLEST_P = 1e-6


@dataclass(frozen=True, kw_only=True)
class CharacterisationSettings:
    """How the model is chosen and judged.

    Args:
        min_patients_per_class: Fewest patients of each kind on whom a result is reported.
        outer_folds: Folds whose held-out predictions are judged.
        inner_folds: Folds within each training part that choose ``features`` and ``strengths``.
        features: Numbers of features to choose from.
        strengths: Inverse strengths C of the L2 penalty to choose from.
        redundant: Absolute rank correlation above which a feature says what a better one says already.
        samples: Resamples of the bootstrap.
        confidence: Of the intervals.
        seed: Of folds and bootstrap.
    """

    min_patients_per_class: int = 20
    outer_folds: int = 5
    inner_folds: int = 4
    features: tuple[int, ...] = (1, 3, 5, 10)
    strengths: tuple[float, ...] = (0.01, 0.1, 1.0)
    redundant: float = 0.9
    samples: int = 2000
    confidence: float = 0.95
    seed: int = 20261123

    def __post_init__(self) -> None:
        if min(self.outer_folds, self.inner_folds) < 2 or self.min_patients_per_class < self.outer_folds:
            raise ConfigurationError(
                f"characterise: needs at least 2 folds and min_patients_per_class ≥ outer_folds; found "
                f"{self.outer_folds}, {self.inner_folds} and {self.min_patients_per_class}."
            )
        if not self.features or not self.strengths or min(*self.features, *self.strengths) <= 0:
            raise ConfigurationError("characterise: features and strengths must name positive numbers.")
        if not (0 < self.confidence < 1 and self.samples >= 1 and 0 < self.redundant <= 1):
            raise ConfigurationError(
                f"characterise: confidence must lie in (0, 1), redundant in (0, 1], samples be ≥ 1; found "
                f"{self.confidence}, {self.redundant} and {self.samples}."
            )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its bootstrap interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities mean what they say.

    Attributes:
        brier: Mean squared error of the probabilities.
        intercept: Of the logistic recalibration; 0 is right, below 0 predicts too high.
        slope: Of the logistic recalibration; 1 is right, below 1 is too sure.
        predicted: Mean probability of each fifth of the subjects, ascending.
        observed: Share of 1 in each fifth.
        counts: Subjects in each fifth.
    """

    brier: float
    intercept: float
    slope: float
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One model's held-out predictions and what they are worth.

    Attributes:
        probability: (N,) from the fold in which a subject was held out.
        auc: Area under the ROC curve.
        calibration: Of the same probabilities.
    """

    probability: FloatArray
    auc: Estimate
    calibration: Calibration


@dataclass(frozen=True, kw_only=True)
class Characterisation:
    """The result.

    Attributes:
        subjects: Number of subjects.
        patients: Number of patients.
        positives: Subjects whose target is 1.
        considered: Features that the model could choose from.
        model: The model of many features.
        diameter: The trivial model: the maximum 3D diameter alone.
        difference: AUC of the model less that of the diameter, on the same resamples.
        chosen: Feature → in how many of the outer folds it was used, most often first.
    """

    subjects: int
    patients: int
    positives: int
    considered: int
    model: Judged
    diameter: Judged
    difference: Estimate
    chosen: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What may be said, in a sentence."""
        if self.difference.low > 0:
            return "The features tell more than the diameter alone."
        if self.difference.high < 0:
            return "The features tell less than the diameter alone."
        return "The features are not shown to tell more than the diameter alone: the interval holds 0."


def characterise(
    cohort: Cohort, settings: CharacterisationSettings | None = None, *, progress: Progress = no_progress
) -> Characterisation:
    """Judge a logistic regression on chosen features against one on the diameter.

    Everything that learns (filling gaps, scaling, choosing features, their number and the penalty) sees the
    training part of the outer fold only; patients never stand on both sides.

    Args:
        cohort: Features and targets; needs the feature `DIAMETER`.
        settings: How; the default suits some hundred subjects.
        progress: Told after each outer fold.

    Raises:
        DataError: If there are fewer than ``min_patients_per_class`` patients of either kind: then no figure
            would mean anything; or if the diameter is missing.
    """
    settings = settings or CharacterisationSettings()
    zeros, ones = cohort.patients_with(0), cohort.patients_with(1)
    if min(zeros, ones) < settings.min_patients_per_class:
        raise DataError(
            f"characterise: needs at least {settings.min_patients_per_class} patients of either kind to say "
            f"anything; found {zeros} with target 0 and {ones} with target 1. Add cases."
        )
    diameter = cohort.column(DIAMETER)[:, None]
    model, alone = np.zeros(len(cohort.target)), np.zeros(len(cohort.target))
    chosen: Counter[str] = Counter()
    folds = split_by_patient(cohort.target, cohort.patients, settings.outer_folds, settings.seed)
    for done, (train, test) in enumerate(folds):
        progress("cross-validating", done, len(folds))
        x, y, groups = cohort.values[train], cohort.target[train], cohort.patients[train]
        count, strength = _choose(x, y, groups, settings)
        fitted = _fit(x, y, count, strength, settings.redundant)
        model[test] = fitted.predict(cohort.values[test])
        chosen.update(cohort.tags[i] for i in fitted.columns)
        alone[test] = _fit(diameter[train], y, 1, 100.0, 1.0).predict(diameter[test])
    progress("cross-validating", len(folds), len(folds))
    first, second, difference = _bootstrap(cohort, model, alone, settings)
    return Characterisation(
        subjects=len(cohort.subjects),
        patients=len(np.unique(cohort.patients)),
        positives=int(cohort.target.sum()),
        considered=len(cohort.tags),
        model=Judged(probability=model, auc=first, calibration=calibrate(model, cohort.target)),
        diameter=Judged(probability=alone, auc=second, calibration=calibrate(alone, cohort.target)),
        difference=difference,
        chosen=dict(chosen.most_common()),
    )


def compute_auc(score: FloatArray, target: Array) -> float:
    """Area under the ROC curve: how often a 1 scores above a 0, ties counting half; NaN without both.

    Source:
        Hanley and McNeil 1982, Radiology 143:29.
    """
    ones = int(target.sum())
    zeros = len(target) - ones
    if not ones or not zeros:
        return float("nan")
    return float((rankdata(score)[target == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def calibrate(probability: FloatArray, target: Array) -> Calibration:
    """Calibration of held-out probabilities (Van Calster et al. 2019, BMC Med 17:230)."""
    clipped = np.clip(probability, SMALLEST_P, 1 - SMALLEST_P)
    logit = np.log(clipped / (1 - clipped))
    refit = LogisticRegression(C=1e9, max_iter=1000).fit(logit[:, None], target)
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, 5) if len(part)]
    return Calibration(
        brier=float(((probability - target) ** 2).mean()),
        intercept=float(refit.intercept_[0]),
        slope=float(refit.coef_[0, 0]),
        predicted=tuple(float(probability[part].mean()) for part in parts),
        observed=tuple(float(target[part].mean()) for part in parts),
        counts=tuple(len(part) for part in parts),
    )


@dataclass(frozen=True)
class _Fitted:
    """A fitted model: which columns, how they are filled and scaled, and their weights."""

    columns: Array
    middle: FloatArray
    scale: FloatArray
    weights: FloatArray
    intercept: float

    def predict(self, values: FloatArray) -> FloatArray:
        """(N,) probabilities of 1."""
        chosen = values[:, self.columns]
        filled = np.where(np.isfinite(chosen), chosen, self.middle)
        logit = ((filled - self.middle) / self.scale) @ self.weights + self.intercept
        probability: FloatArray = 1 / (1 + np.exp(-np.clip(logit, -500, 500)))
        return probability


def _fit(values: FloatArray, target: Array, count: int, strength: float, redundant: float) -> _Fitted:
    """Fill by medians, take the ``count`` best features that differ from one another, fit."""
    middle = np.nanmedian(np.where(np.isfinite(values), values, np.nan), axis=0)
    filled = np.where(np.isfinite(values), values, middle)
    columns = _best_columns(filled, target, count, redundant)
    # Interquartile range over that of the normal distribution: one outlier does not flatten a feature.
    low, high = np.percentile(filled[:, columns], [25, 75], axis=0)
    scale = np.where(high > low, (high - low) / 1.349, 1.0)
    scaled = (filled[:, columns] - middle[columns]) / scale
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(scaled, target)
    return _Fitted(columns, middle[columns], scale, fitted.coef_[0], float(fitted.intercept_[0]))


def _best_columns(values: FloatArray, target: Array, count: int, redundant: float) -> Array:
    ranks = rankdata(values, axis=0)
    spread = ranks.std(axis=0)
    standard = (ranks - ranks.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    ones = target == 1
    apart = np.abs(standard[ones].mean(axis=0) - standard[~ones].mean(axis=0))
    kept: list[int] = []
    for column in np.argsort(-apart, kind="stable"):
        if len(kept) == count:
            break
        alike = np.abs(standard[:, kept].T @ standard[:, column]) / len(standard)
        if not (alike > redundant).any() and (spread[column] > 0 or not kept):
            kept.append(int(column))
    return np.array(kept, np.int64)


def _choose(
    values: FloatArray, target: Array, patients: Array, settings: CharacterisationSettings
) -> tuple[int, float]:
    """The number of features and the strength with the least log loss over the inner folds."""
    folds = split_by_patient(target, patients, settings.inner_folds, settings.seed + 1)
    grid = [(count, strength) for count in settings.features for strength in settings.strengths]
    losses = []
    for count, strength in grid:
        loss = 0.0
        for train, test in folds:
            fitted = _fit(values[train], target[train], count, strength, settings.redundant)
            p = np.clip(fitted.predict(values[test]), SMALLEST_P, 1 - SMALLEST_P)
            loss -= float(np.log(np.where(target[test] == 1, p, 1 - p)).sum())
        losses.append(loss)
    return grid[int(np.argmin(losses))]


def split_by_patient(target: Array, patients: Array, count: int, seed: int) -> list[tuple[Array, Array]]:
    """Folds as (training rows, held-out rows), alike in their share of 1, no patient on both sides.

    Raises:
        DataError: If a training part would hold one kind only.
    """
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros(len(target)), target, patients))
    for train, test in folds:
        if len(np.unique(target[train])) < 2 or not len(test):
            raise DataError(
                "characterise: every fold must hold both kinds of patients; found one without. Add cases, or "
                "take fewer folds."
            )
    return folds


def _bootstrap(
    cohort: Cohort, model: FloatArray, alone: FloatArray, settings: CharacterisationSettings
) -> tuple[Estimate, Estimate, Estimate]:
    """AUC of both and their difference over resampled patients; resamples of one kind only are left out."""
    rng = np.random.default_rng(settings.seed)
    names, member = np.unique(cohort.patients, return_inverse=True)
    rows = [np.flatnonzero(member == i) for i in range(len(names))]
    drawn = []
    for _ in range(settings.samples):
        picked = np.concatenate([rows[i] for i in rng.integers(0, len(names), len(names))])
        target = cohort.target[picked]
        drawn.append((compute_auc(model[picked], target), compute_auc(alone[picked], target)))
    pairs = np.array(drawn)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    ends = [0.5 - settings.confidence / 2, 0.5 + settings.confidence / 2]

    def estimate(value: float, samples: FloatArray) -> Estimate:
        low, high = np.quantile(samples, ends) if len(samples) else (np.nan, np.nan)
        return Estimate(value=value, low=float(low), high=float(high))

    first, second = compute_auc(model, cohort.target), compute_auc(alone, cohort.target)
    return (
        estimate(first, pairs[:, 0]),
        estimate(second, pairs[:, 1]),
        estimate(first - second, pairs[:, 0] - pairs[:, 1]),
    )
