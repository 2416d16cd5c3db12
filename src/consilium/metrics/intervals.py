"""How sure a figure is: bootstrap intervals over patients and the Wilson interval of a proportion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from consilium.errors import ConfigurationError
from consilium.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: The figure; NaN if there was nothing to compute it from.
        low: Lower end, NaN where an interval cannot be given (fewer than two independent values).
        high: Upper end, likewise.
        confidence: In (0, 1).
        count: Number of independent values (patients, scans) behind it.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    count: int


def bootstrap_mean(
    values: Sequence[float] | FloatArray,
    rng: np.random.Generator,
    *,
    patients: Sequence[str] | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
) -> Interval:
    """Mean over patients with a percentile bootstrap interval that resamples patients, not values.

    Several values of one patient (structures, nodules) are averaged first, since they are not independent.

    Args:
        values: (N,) figures; NaN means "not measured" and is left out.
        rng: Generator of the resampling.
        patients: (N,) patient of each value; None if each value is its own patient.
        confidence: In (0, 1).
        samples: Number of resamples, ≥ 1.

    Returns:
        The interval; NaN throughout if no value is left; low and high NaN if only one patient is.

    Raises:
        ConfigurationError: Confidence outside (0, 1), no samples, or lengths that differ.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    check_confidence(confidence, samples)
    array = np.asarray(values, float)
    names = np.arange(len(array)).astype(str) if patients is None else np.asarray(patients)
    if len(names) != len(array):
        raise ConfigurationError(
            f"bootstrap_mean: one patient per value; found {len(names)} patients and {len(array)} values."
        )
    kept = ~np.isnan(array)
    array, names = array[kept], names[kept]
    means = np.array([array[names == name].mean() for name in np.unique(names)])
    if len(means) < 2:
        estimate = float(means[0]) if len(means) else float("nan")
        return _interval(estimate, float("nan"), float("nan"), confidence, len(means))
    drawn = means[rng.integers(0, len(means), (samples, len(means)))].mean(axis=1)
    low, high = percentile_ends(drawn, confidence)
    return _interval(float(means.mean()), low, high, confidence, len(means))


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval, right even at 0 and 1 and for few trials.

    Args:
        successes: In [0, trials].
        trials: ≥ 0.
        confidence: In (0, 1).

    Returns:
        The interval within [0, 1]; NaN throughout for no trials.

    Raises:
        ConfigurationError: Successes outside [0, trials] or confidence outside (0, 1).

    Source:
        Wilson 1927, J Am Stat Assoc 22:209.
    """
    check_confidence(confidence, 1)
    if not 0 <= successes <= trials:
        raise ConfigurationError(f"wilson: successes must lie in [0, {trials}]; found {successes}.")
    if not trials:
        return _interval(float("nan"), float("nan"), float("nan"), confidence, 0)
    z = float(norm.ppf(0.5 + confidence / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return _interval(share, low, high, confidence, trials)


def percentile_ends(drawn: FloatArray, confidence: float) -> tuple[float, float]:
    """Lower and upper percentile of resampled figures, NaN among them left out; NaN if none is left."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def check_confidence(confidence: float, samples: int) -> None:
    """Refuse a confidence outside (0, 1) and a bootstrap without samples.

    Raises:
        ConfigurationError: Either of them.
    """
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence: must lie in (0, 1); found {confidence}. Say 0.95 for 95 %.")
    if samples < 1:
        raise ConfigurationError(f"samples: must be ≥ 1; found {samples}.")


def _interval(estimate: float, low: float, high: float, confidence: float, count: int) -> Interval:
    return Interval(estimate=estimate, low=low, high=high, confidence=confidence, count=count)
