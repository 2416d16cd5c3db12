"""Intervals against published values and simulated coverage."""

import math

import numpy as np
import pytest

from consilium.errors import ConfigurationError
from consilium.metrics.intervals import bootstrap_mean, wilson


def test_wilson_gives_the_textbook_interval() -> None:
    # Newcombe 1998, Stat Med 17:857, table I, method 3: 81/263, 15/148, 0/20 and 1/29.
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, trials)
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_of_no_trials_is_not_a_number() -> None:
    assert math.isnan(wilson(0, 0).estimate)
    assert wilson(5, 5).high == 1.0
    with pytest.raises(ConfigurationError, match="successes"):
        wilson(3, 2)


def test_bootstrap_of_normal_values_is_near_the_normal_interval(rng: np.random.Generator) -> None:
    values = rng.normal(10, 2, 400)
    interval = bootstrap_mean(values, rng)
    half = 1.96 * values.std() / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(rng.normal(0, 1, 30), rng, samples=400)
        hits += interval.low <= 0 <= interval.high
    assert 0.87 <= hits / 200 <= 0.98


def test_several_values_of_a_patient_count_once(rng: np.random.Generator) -> None:
    patients = ["a", "a", "a", "b"]
    interval = bootstrap_mean([1.0, 1.0, 1.0, 0.0], rng, patients=patients)
    assert interval.estimate == 0.5
    assert interval.count == 2


def test_what_was_not_measured_is_left_out(rng: np.random.Generator) -> None:
    interval = bootstrap_mean([0.5, float("nan"), 0.7], rng)
    assert interval.count == 2
    assert interval.estimate == pytest.approx(0.6)
    assert math.isnan(bootstrap_mean([], rng).estimate)
    single = bootstrap_mean([0.4], rng)
    assert single.estimate == 0.4
    assert math.isnan(single.low)


def test_settings_that_cannot_be_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ConfigurationError, match="confidence"):
        bootstrap_mean([1.0], rng, confidence=95)
    with pytest.raises(ConfigurationError, match="samples"):
        bootstrap_mean([1.0], rng, samples=0)
    with pytest.raises(ConfigurationError, match="one patient per value"):
        bootstrap_mean([1.0], rng, patients=["a", "b"])
