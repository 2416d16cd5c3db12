"""Agreement among readers and with a model, on masks whose overlaps are known."""

import math

import numpy as np
import pytest

from consilium.errors import GeometryError
from consilium.metrics.readers import compute_reader_agreement
from tests.metrics.shapes import box

SHAPE = (2, 4, 10)


def strip(start: int) -> np.ndarray:  # type: ignore[type-arg]
    return box(SHAPE, (0, 0, start), (2, 4, start + 4))


def test_pairs_and_model_are_averaged_apart() -> None:
    # Strips of four columns, shifted: Dice is (4 - shift) / 4.
    found = compute_reader_agreement({"a": strip(0), "b": strip(1), "c": strip(3)}, strip(1))
    assert found.among_readers == pytest.approx(np.mean([0.75, 0.25, 0.5]))
    assert found.with_model == pytest.approx(np.mean([0.75, 1.0, 0.5]))
    assert (found.pairs, found.readers) == (3, 3)


def test_a_model_that_copies_a_reader_cannot_beat_the_readers_by_its_own_copy() -> None:
    readers = {"a": strip(0), "b": strip(2)}
    assert compute_reader_agreement(readers, strip(0)).with_model == pytest.approx((1 + 0.5) / 2)
    assert compute_reader_agreement(readers).among_readers == 0.5


def test_a_missed_thing_counts_zero_and_two_empty_masks_do_not_count() -> None:
    empty = np.zeros(SHAPE, bool)
    found = compute_reader_agreement({"a": strip(0), "b": empty, "c": empty}, empty)
    assert found.among_readers == 0
    assert found.pairs == 2
    assert found.with_model == 0
    alone = compute_reader_agreement({"a": strip(0)})
    assert math.isnan(alone.among_readers)
    assert math.isnan(alone.with_model)


def test_masks_of_different_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match="one grid"):
        compute_reader_agreement({"a": strip(0), "b": np.zeros((1, 1, 1), bool)})
