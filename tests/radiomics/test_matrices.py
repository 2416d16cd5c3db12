"""Texture matrices against plain loops that follow the standard's words."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from consilium.radiomics.cooccurrence import count_pairs
from consilium.radiomics.directions import directions_2d, directions_3d, neighbourhood
from consilium.radiomics.emphasis import compute_emphasis, count_rows, table_of
from consilium.radiomics.neighbours import COARSEST, count_neighbours
from consilium.radiomics.neighbours import _tone as compute_tone
from consilium.radiomics.runs import count_runs
from consilium.radiomics.zones import find_zones
from consilium.types import Array

HIGHEST = 4


@pytest.fixture
def levels(rng: np.random.Generator) -> Array:
    image = rng.integers(1, HIGHEST + 1, (4, 6, 5)).astype(np.int32)
    image[rng.random(image.shape) < 0.25] = 0
    return image


def at(image: Array, point: Array) -> int:
    """Level at a point; 0 outside the image."""
    inside = all(0 <= p < n for p, n in zip(point, image.shape, strict=True))
    return int(image[tuple(point)]) if inside else 0


def test_there_are_13_directions_in_space_and_4_in_a_slice() -> None:
    assert len(directions_3d()) == 13
    assert len(directions_2d()) == 4
    assert len(directions_3d(2)) == (125 - 27) // 2
    assert len(neighbourhood(1, planar=False)) == 26
    assert len(neighbourhood(1, planar=True)) == 8
    for offsets in (directions_3d(), directions_3d(2)):
        opposite = {tuple(-o) for o in offsets}
        assert not opposite & {tuple(o) for o in offsets}


@pytest.mark.parametrize("distance", [1, 2])
def test_pairs_are_counted_both_ways(levels: Array, distance: int) -> None:
    offsets = directions_3d(distance)
    counts = count_pairs(levels, offsets, HIGHEST)
    for k, offset in enumerate(offsets):
        expected = np.zeros((HIGHEST, HIGHEST), int)
        for point in np.argwhere(levels):
            for other in (point + offset, point - offset):
                if at(levels, other):
                    expected[at(levels, point) - 1, at(levels, other) - 1] += 1
        np.testing.assert_array_equal(counts[k], expected)


def test_runs_of_each_direction_hold_every_voxel_once(levels: Array) -> None:
    offsets = directions_3d()
    counts = count_runs(levels, offsets, HIGHEST, max(levels.shape))
    lengths = np.arange(1, max(levels.shape) + 1)
    for k, offset in enumerate(offsets):
        np.testing.assert_array_equal(counts[k] @ lengths, np.bincount(levels[levels > 0])[1:])
        starts = [p for p in np.argwhere(levels) if at(levels, p - offset) != at(levels, p)]
        assert counts[k].sum() == len(starts)


def test_runs_of_a_line_are_those_on_paper() -> None:
    line = np.array([[[1, 1, 2, 0, 2, 2, 2]]], np.int32)
    counts = count_runs(line, np.array([[0, 0, 1]]), 2, 7)[0]
    assert counts.tolist() == [[0, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("planar", [False, True])
def test_zones_are_the_connected_components_of_each_level(levels: Array, planar: bool) -> None:
    depth = np.arange(levels.size).reshape(levels.shape) % 7 + 1
    structure = np.ones((3, 3, 3), int)
    if planar:
        structure[[0, 2]] = 0
    expected = []
    for level in range(1, HIGHEST + 1):
        labels, count = ndimage.label(levels == level, structure)
        for zone in range(1, count + 1):
            expected.append((level, int((labels == zone).sum()), int(depth[labels == zone].min())))
    zones = find_zones(levels, depth, neighbourhood(1, planar=planar))
    assert sorted(map(tuple, zones.tolist())) == sorted(expected)


@pytest.mark.parametrize("coarseness", [0, 1])
def test_tone_difference_and_dependence_follow_their_definitions(levels: Array, coarseness: int) -> None:
    tone, dependence = count_neighbours(levels, neighbourhood(1, planar=False), HIGHEST, coarseness)
    expected_tone, expected_dependence = np.zeros((HIGHEST, 2)), np.zeros((HIGHEST, 27), int)
    for point in np.argwhere(levels):
        level = at(levels, point)
        around = [at(levels, point + offset) for offset in product((-1, 0, 1), repeat=3) if any(offset)]
        around = [other for other in around if other]
        alike = sum(abs(other - level) <= coarseness for other in around)
        expected_dependence[level - 1, alike] += 1
        if around:
            expected_tone[level - 1] += 1, abs(level - sum(around) / len(around))
    np.testing.assert_allclose(tone, expected_tone, atol=1e-12)
    np.testing.assert_array_equal(dependence, expected_dependence)


def test_a_flat_region_has_the_documented_tone_differences() -> None:
    values = compute_tone(np.array([[10.0, 0.0]]))
    assert values is not None
    assert values["ngt_coarseness"] == COARSEST
    assert values["ngt_contrast"] == values["ngt_busyness"] == values["ngt_strength"] == 0
    assert compute_tone(np.zeros((2, 2))) is None


def test_emphasis_of_a_small_matrix_is_that_on_paper() -> None:
    # Two zones of level 1 and size 1, one of level 2 and size 3.
    table = count_rows(np.array([1, 2, 1]), np.array([1, 3, 1]))
    assert table.tolist() == [[1, 1, 2], [2, 3, 1]]
    names = tuple("abcdefghijklmnopq")
    values = compute_emphasis(table, 5, names)
    assert values is not None
    assert values["a"] == pytest.approx((2 + 1 / 9) / 3)
    assert values["b"] == pytest.approx((2 + 9) / 3)
    assert values["h"] == pytest.approx((2 + 36) / 3)
    assert values["i"] == pytest.approx(5 / 3)
    assert values["m"] == pytest.approx(3 / 5)
    assert values["p"] == pytest.approx(-(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3))
    assert compute_emphasis(np.zeros((0, 3), int), 5, names) is None


def test_a_dense_matrix_and_its_table_hold_the_same() -> None:
    dense = np.array([[0, 2], [1, 0], [0, 3]])
    assert table_of(dense).tolist() == [[1, 2, 2], [2, 1, 1], [3, 2, 3]]
