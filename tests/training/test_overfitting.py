"""The over-fitting watch on curves whose turning point is known."""

import itertools
import json

from consilium.training.overfitting import LOWER_BY, LOWERINGS, PATIENCE, OverfittingWatch


def feed(watch: OverfittingWatch, curve: list[tuple[float, float]]) -> list[int]:
    return [step for step, (train, valid) in enumerate(curve) if watch.observe(step, train, valid)]


RISING = [(0.1 * k, 0.08 * k) for k in range(10)]
FALLING = [(0.9 + 0.005 * k, 0.72 - 0.02 * k) for k in range(1, 30)]


def test_a_healthy_training_is_left_alone() -> None:
    watch = OverfittingWatch()
    assert feed(watch, RISING) == []
    assert watch.rate_factor == 1.0


def test_falling_validation_under_rising_training_stops_soon_after_the_turn() -> None:
    watch = OverfittingWatch(action="stop")
    seen = feed(watch, RISING + FALLING)
    assert watch.stopped
    assert len(RISING) < seen[0] <= len(RISING) + 2 * PATIENCE


def test_the_rate_is_lowered_before_training_is_stopped() -> None:
    watch = OverfittingWatch(action="lower")
    seen = feed(watch, RISING + FALLING)
    assert watch.rate_factor == LOWER_BY**LOWERINGS
    assert watch.stopped
    assert all(b - a >= PATIENCE for a, b in itertools.pairwise(seen))
    assert watch.marks == seen


def test_one_bad_validation_is_no_alarm() -> None:
    curve = [*RISING, (0.95, 0.70), (0.96, 0.74), (0.97, 0.75)]
    assert feed(OverfittingWatch(action="stop"), curve) == []


def test_both_falling_is_no_over_fitting() -> None:
    curve = RISING + [(0.9 - 0.03 * k, 0.72 - 0.03 * k) for k in range(12)]
    assert feed(OverfittingWatch(action="stop"), curve) == []


def test_switched_off_it_only_remembers() -> None:
    watch = OverfittingWatch(action="off")
    assert feed(watch, RISING + FALLING) == []
    assert len(watch.history) == len(RISING + FALLING)


def test_a_validation_without_a_figure_is_passed_over() -> None:
    watch = OverfittingWatch()
    assert not watch.observe(1, float("nan"), 0.5)
    assert watch.history == []


def test_it_survives_json() -> None:
    watch = OverfittingWatch(action="lower")
    feed(watch, RISING + FALLING[:6])
    assert OverfittingWatch.from_json(json.loads(json.dumps(watch.to_json()))) == watch
