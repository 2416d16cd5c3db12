"""From an image to masks: one pass, windows, several models, doubt."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from consilium.errors import ConfigurationError, MemoryPlanError
from consilium.geometry.volume import Volume
from consilium.inference.contour import (
    choose_window,
    contour_volume,
    entropy_on_grid,
    predict,
)
from consilium.inference.doubt import entropy_bits, expected_dice
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.sliding_window import gaussian_weights, predict_windows, window_starts
from consilium.inference.whole_volume import predict_whole
from tests.inference.models import small_model
from tests.inference.test_preprocess import STANDARD, turned


def image(rng: np.random.Generator) -> Volume:
    values = rng.normal(0, 60, STANDARD.shape_zyx)
    values[5:15, 6:18, 8:20] += 150
    return Volume(values.astype(np.int16), STANDARD)


def test_masks_lie_on_the_image_grid_one_structure_at_a_time(rng: np.random.Generator) -> None:
    volume = image(rng)
    results = contour_volume(small_model(), volume)
    name, mask, figures = next(results)
    assert (name, mask.shape, mask.dtype) == ("Bladder", STANDARD.shape_zyx, np.bool_)
    assert figures.voxels == mask.sum()
    assert figures.volume_cm3 == pytest.approx(mask.sum() * 3.0 * 1.5 * 1.0 / 1000)
    assert [found for found, _, _ in results] == ["Rectum"]


def test_a_turned_image_gets_the_turned_contour(rng: np.random.Generator) -> None:
    volume = image(rng)
    moved = Volume(np.ascontiguousarray(volume.array.transpose(2, 1, 0)[::-1]), turned(STANDARD))
    model = small_model()
    straight = {name: mask for name, mask, _ in contour_volume(model, volume)}
    assert any(mask.any() for mask in straight.values())
    for name, mask, _ in contour_volume(model, moved):
        back = mask[::-1].transpose(2, 1, 0)
        assert (back != straight[name]).mean() < 0.002


def test_windows_cover_every_voxel_and_overlap() -> None:
    for length, window in [(100, 32), (33, 32), (32, 32), (20, 32), (65, 32)]:
        starts = window_starts(length, window, 0.5)
        assert min(starts) <= 0
        assert max(starts) + window >= length
        assert all(b - a <= window // 2 for a, b in itertools.pairwise(starts))


def test_weights_of_windows_are_highest_in_the_middle() -> None:
    weights = gaussian_weights((9, 5, 7))
    assert weights.shape == (9, 5, 7)
    assert np.unravel_index(weights.argmax(), weights.shape) == (4, 2, 3)
    assert weights.min() > 0


def test_one_window_as_large_as_the_image_equals_one_pass(rng: np.random.Generator) -> None:
    model = small_model()
    values = image(rng).array
    whole = predict_whole(model, values)
    windowed = predict_windows(model, values, (20, 24, 28))
    assert np.abs(whole - windowed).max() < 1e-6


def test_windows_without_norm_agree_with_one_pass_far_from_their_borders(rng: np.random.Generator) -> None:
    # Without instance norm a voxel depends on a few neighbours only, so both ways must agree inside windows.
    model = small_model(norm="none")
    values = np.ascontiguousarray(np.tile(image(rng).array, (1, 2, 2)))
    whole = predict_whole(model, values)
    windowed = predict_windows(model, values, (20, 32, 32), overlap=0.5)
    assert np.median(np.abs(whole - windowed)) < 1e-3


def test_a_padded_window_takes_a_small_image(rng: np.random.Generator) -> None:
    model = small_model()
    small = np.ascontiguousarray(image(rng).array[:6, :10, :9])
    probability = predict_windows(model, small, (8, 16, 16))
    assert probability.shape == (2, 6, 10, 9)
    assert np.isfinite(probability).all()


def test_the_memory_decides_between_one_pass_and_windows() -> None:
    model = small_model()
    assert choose_window(model, (64, 64, 64), memory_bytes=1 << 32) is None
    window = choose_window(model, (256, 256, 256), memory_bytes=1 << 27)
    assert window is not None
    assert all(w < 256 for w in window)
    with pytest.raises(MemoryPlanError, match="MiB"):
        choose_window(model, (256, 256, 256), memory_bytes=1 << 12)
    trained_on_patches = small_model(window_zyx=(8, 16, 16))
    assert choose_window(trained_on_patches, (64, 64, 64), memory_bytes=1 << 32) == (8, 16, 16)


def test_several_models_give_their_mean_probability(rng: np.random.Generator) -> None:
    volume = image(rng)
    models = [small_model(seed=1), small_model(seed=2)]
    single = [predict([model], volume).probability for model in models]
    both = predict(models, volume)
    assert np.allclose(both.probability, (single[0] + single[1]) / 2, atol=1e-6)
    doubt = entropy_on_grid(both, volume.grid)
    assert doubt.shape == volume.grid.shape_zyx
    assert 0 <= doubt.min() <= doubt.max() <= 1


def test_models_of_different_structures_are_not_averaged(rng: np.random.Generator) -> None:
    first = small_model()
    other = replace(first, description=replace(first.description, structures=("Bladder", "Prostate")))
    with pytest.raises(ConfigurationError, match="same structures"):
        predict([first, other], image(rng))


def test_the_largest_part_alone_is_kept() -> None:
    mask = np.zeros((4, 8, 8), dtype=bool)
    mask[1, 1:3, 1:3] = True
    mask[1:3, 5:8, 5:8] = True
    kept = keep_largest_component(mask)
    assert kept.sum() == 18
    assert kept[1:3, 5:8, 5:8].all()
    assert not keep_largest_component(np.zeros((2, 2, 2), dtype=bool)).any()


def test_entropy_is_one_bit_at_even_odds_and_nothing_when_sure() -> None:
    values = entropy_bits(np.array([0.0, 0.5, 1.0, 0.25], dtype=np.float32))
    assert values.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.811278], abs=1e-5)


def test_promised_dice_is_the_mean_dice_of_drawn_truths(rng: np.random.Generator) -> None:
    probability = rng.random((12, 12, 12)).astype(np.float32)
    mask = probability >= 0.5
    drawn = []
    for _ in range(200):
        truth = rng.random(mask.shape) < probability
        drawn.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert expected_dice(probability) == pytest.approx(float(np.mean(drawn)), abs=0.005)
    assert math.isnan(expected_dice(np.zeros((2, 2, 2), dtype=np.float32)))


def test_contouring_twice_gives_the_same_bits(rng: np.random.Generator) -> None:
    volume, model = image(rng), small_model()
    with torch.inference_mode():
        first, second = (predict([model], volume).probability for _ in range(2))
    assert np.array_equal(first, second)


def test_a_calibration_finds_the_line_and_survives_the_card(rng: np.random.Generator) -> None:
    from consilium.inference.doubt import CARD_ENTRY, calibration_of, compute_doubt, fit_calibration

    promised = rng.uniform(0.3, 0.95, 40)
    kept = 0.8 * promised + 0.05
    found = fit_calibration([*promised, math.nan], [*kept, 0.5])
    assert found is not None
    assert (found.slope, found.intercept, found.pairs) == (pytest.approx(0.8), pytest.approx(0.05), 40)
    assert calibration_of({CARD_ENTRY: found.to_json()}) == found
    assert calibration_of({}) is None
    assert fit_calibration([0.5] * 20, [0.4] * 20) is None
    assert fit_calibration([0.1, 0.9], [0.2, 0.8]) is None
    probability = np.full((4, 4, 4), 0.9, dtype=np.float32)
    sure = expected_dice(probability)
    assert compute_doubt(probability) == pytest.approx(1 - sure)
    assert compute_doubt(probability, found) == pytest.approx(1 - (0.8 * sure + 0.05))
