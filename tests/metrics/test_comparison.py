"""Overlap, volumes, added path length and the one entry that gives them all."""

import doctest
import math

import numpy as np
import pytest

from consilium.metrics import comparison, detection, readers
from consilium.metrics.comparison import compare_masks
from consilium.metrics.overlap import added_path_length_mm, dice, slice_contours, volume_cm3
from consilium.types import Mask
from tests.metrics.shapes import box, speckle


def plain_contour(mask: Mask) -> set[tuple[int, int, int]]:
    """Contour pixels by their definition, in plain loops."""
    found = set()
    for z, y, x in np.argwhere(mask):
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            v, u = y + dy, x + dx
            if not (0 <= v < mask.shape[1] and 0 <= u < mask.shape[2]) or not mask[z, v, u]:
                found.add((int(z), int(y), int(x)))
    return found


def test_half_overlapping_boxes_have_dice_one_half() -> None:
    reference = box((4, 8, 8), (0, 0, 0), (4, 8, 4))
    prediction = box((4, 8, 8), (0, 0, 2), (4, 8, 6))
    assert dice(reference, prediction) == 0.5


def test_volume_is_voxels_times_voxel_volume() -> None:
    assert volume_cm3(box((10, 10, 10), (0, 0, 0), (10, 10, 10)), (2.0, 1.0, 0.5)) == 1.0


def test_dice_of_two_empty_masks_is_not_a_number() -> None:
    empty, some = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert math.isnan(dice(empty, empty))
    assert dice(empty, some) == dice(some, empty) == 0


def test_contour_pixels_follow_their_definition(rng: np.random.Generator) -> None:
    for share in (0.3, 0.9):
        mask = speckle(rng, (3, 7, 8), share)
        mask[0, :1] = True
        assert {tuple(map(int, p)) for p in np.argwhere(slice_contours(mask))} == plain_contour(mask)


def test_added_path_of_a_square_grown_by_a_pixel_is_its_whole_outline() -> None:
    reference = box((3, 12, 12), (0, 2, 2), (3, 10, 10))
    prediction = box((3, 12, 12), (0, 3, 3), (3, 9, 9))
    # An 8x8 square has 28 contour pixels on each of 3 slices; pixels are 0.5 x 2 mm, so 1 mm long.
    assert added_path_length_mm(reference, prediction, (3.0, 0.5, 2.0)) == pytest.approx(3 * 28)
    assert added_path_length_mm(reference, reference, (3.0, 0.5, 2.0)) == 0


def test_added_path_counts_only_the_slices_and_sides_that_are_wrong() -> None:
    reference = box((4, 10, 12), (0, 2, 2), (4, 8, 8))
    prediction = reference.copy()
    prediction[1, 2:8, 8:10] = True
    # On one slice of four the right side moved: its six pixels less the two corners, which still are contour.
    assert added_path_length_mm(reference, prediction, (1.0, 1.0, 1.0)) == 4


def test_all_figures_of_a_pair_agree_with_one_another(rng: np.random.Generator) -> None:
    reference, prediction = speckle(rng, (9, 9, 9), 0.4), speckle(rng, (9, 9, 9), 0.4)
    spacing = (2.0, 1.0, 1.5)
    figures = compare_masks(reference, prediction, spacing, tolerance_mm=1.0)
    assert figures.empty == "neither"
    assert figures.dice == dice(reference, prediction)
    assert figures.reference_volume_cm3 == pytest.approx(volume_cm3(reference, spacing))
    assert figures.prediction_voxels == prediction.sum()
    assert figures.added_path_length_mm == added_path_length_mm(reference, prediction, spacing)
    assert figures.hd95_mm <= figures.hausdorff_mm
    low, high = sorted((figures.reference_to_prediction_mm, figures.prediction_to_reference_mm))
    assert low <= figures.mean_surface_distance_mm <= high
    assert figures.as_dict()["tolerance_mm"] == 1.0


def test_figures_do_not_depend_on_the_empty_space_around(rng: np.random.Generator) -> None:
    reference, prediction = speckle(rng, (5, 6, 7), 0.5), speckle(rng, (5, 6, 7), 0.5)
    around = [np.pad(m, ((1, 4), (3, 0), (2, 5))) for m in (reference, prediction)]
    spacing = (2.0, 1.0, 1.5)
    assert compare_masks(around[0], around[1], spacing) == compare_masks(reference, prediction, spacing)


def test_empty_masks_have_the_documented_figures() -> None:
    empty, some = np.zeros((4, 6, 6), bool), box((4, 6, 6), (1, 1, 1), (3, 5, 5))
    both = compare_masks(empty, empty, (1.0, 1.0, 1.0))
    assert both.empty == "both"
    assert math.isnan(both.dice)
    assert math.isnan(both.hd95_mm)
    assert math.isnan(both.surface_dice)
    assert both.added_path_length_mm == 0
    missed = compare_masks(some, empty, (1.0, 1.0, 1.0))
    assert (missed.empty, missed.dice, missed.surface_dice, missed.hd95_mm) == ("prediction", 0, 0, math.inf)
    assert missed.added_path_length_mm == 2 * 12
    invented = compare_masks(empty, some, (1.0, 1.0, 1.0))
    assert (invented.empty, invented.dice, invented.added_path_length_mm) == ("reference", 0, 0)


@pytest.mark.parametrize("module", [comparison, detection, readers])
def test_the_examples_in_the_docstrings_run(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0
