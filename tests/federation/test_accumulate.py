"""The fixed-point mean: exact, in any order, and untouched where all agree."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.errors import FederationError
from consilium.federation.accumulate import WeightedSum, choose_exponent
from consilium.federation.parameters import Parameters, Schema, compute_digest
from consilium.federation.settings import HeadMap
from tests.federation.toys import HEADS, build_model, same_bits, shift


def combine(
    base: Parameters,
    updates: list[tuple[Parameters, int, dict[str, int]]],
    heads: HeadMap = HEADS,
    *,
    total: int = 10**6,
) -> Parameters:
    heads = heads if "head.bias" in base else HeadMap()
    total_sum = WeightedSum(base, Schema.of(base), heads, reach=100.0, total_weight=total)
    for parameters, weight, known in updates:
        total_sum.add(parameters.items(), weight, known)
    return dict(total_sum.means())


def test_the_mean_of_one_update_is_that_update_bit_for_bit() -> None:
    update = shift(build_model(), 1e-12)
    assert same_bits(combine(build_model(), [(update, 7, {})]), update)


def test_the_mean_of_equal_updates_is_the_update_bit_for_bit() -> None:
    update = build_model(3)
    assert same_bits(combine(build_model(), [(update, weight, {}) for weight in (1, 5, 9)]), update)


@pytest.mark.parametrize("count", [3, 30, 300, 1000])
def test_any_order_of_arrival_gives_the_same_digest(count: int, rng: np.random.Generator) -> None:
    base = build_model()
    updates = [(build_model(seed), int(rng.integers(1, 500)), {}) for seed in range(count)]
    orders = itertools.permutations(range(3)) if count == 3 else (rng.permutation(count) for _ in range(5))
    assert len({compute_digest(combine(base, [updates[i] for i in order])) for order in orders}) == 1


def test_equal_updates_among_others_do_not_make_the_order_matter() -> None:
    base, one, other = build_model(), build_model(1), build_model(2)
    updates = [(one, 3, {}), (one, 4, {}), (other, 2, {}), (one, 1, {})]
    assert len({compute_digest(combine(base, list(order))) for order in itertools.permutations(updates)}) == 1


def test_the_mean_agrees_with_exact_arithmetic_to_a_unit_and_the_last_place() -> None:
    updates = [(build_model(seed), weight, {}) for seed, weight in ((1, 3), (2, 10), (3, 6))]
    mean = combine(build_model(), updates)
    for name, array in mean.items():
        exact = sum(np.float64(w) * p[name].astype(np.longdouble) for p, w, _ in updates) / 19
        largest = max(np.abs(p[name]).max() for p, _, _ in updates)
        unit = 2.0 ** choose_exponent(100.0 + largest, 10**6)
        assert np.abs(array - exact).max() <= 6e-8 * largest + unit


def test_heads_are_combined_only_over_the_sites_that_know_the_structure() -> None:
    base = build_model(heads=True)
    one, other = shift(base, 1.0), shift(base, 3.0)
    mean = combine(base, [(one, 10, {"Brainstem": 10}), (other, 10, {"Brainstem": 5, "Mandible": 5})])
    known, only_other, unknown = (mean["head.weight"][row] - base["head.weight"][row] for row in range(3))
    np.testing.assert_allclose(known, (10 * 1.0 + 5 * 3.0) / 15, rtol=1e-6)
    assert np.array_equal(mean["head.weight"][1], other["head.weight"][1])
    assert np.array_equal(unknown, np.zeros(4))
    np.testing.assert_allclose(only_other, 3.0, rtol=1e-6)
    np.testing.assert_allclose(mean["encoder.0.weight"] - base["encoder.0.weight"], 2.0, rtol=1e-6)


def test_a_weight_of_zero_leaves_the_shared_arrays_alone() -> None:
    base = build_model(heads=True)
    mean = combine(base, [(shift(base, 1.0), 0, {"Larynx": 4})])
    assert np.array_equal(mean["encoder.0.weight"], base["encoder.0.weight"])
    assert np.array_equal(mean["head.bias"], base["head.bias"] + np.array([0, 0, 1], np.float32))


def test_nothing_added_leaves_the_base() -> None:
    base = build_model(heads=True)
    assert same_bits(combine(base, []), base)


def test_weights_beyond_what_was_agreed_are_refused_rather_than_wrapped() -> None:
    with pytest.raises(FederationError, match="may reach 15"):
        combine(build_model(), [(build_model(1), 10, {}), (build_model(2), 6, {})], total=15)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-30, 1e30), st.integers(1, 10**9))
def test_the_largest_sum_fits_in_63_bits_and_wastes_at_most_two(bound: float, weight: int) -> None:
    steps = bound * weight / 2.0 ** choose_exponent(bound, weight)
    assert 2.0**60 <= steps <= 2.0**62


def test_adding_more_updates_takes_no_more_memory() -> None:
    base = {"w": np.zeros(200_000, np.float32)}
    peaks = []
    for count in (3, 60):
        tracemalloc.start()
        total = WeightedSum(base, Schema.of(base), HeadMap(), reach=10.0, total_weight=10_000)
        for index in range(count):
            total.add([("w", np.full(200_000, index, np.float32))], 1, {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.02 * peaks[0]
