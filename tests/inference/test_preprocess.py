"""What the network sees, and the way back to the image's grid."""

import json

import numpy as np
import pytest
import torch

from consilium.errors import ConfigurationError, DataError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.inference.preprocess import (
    Preprocessing,
    find_body,
    map_to_grid,
    network_grid,
    prepare_image,
    prepare_mask,
    to_channels,
)
from tests.cases.drafts import ball_mask

STANDARD = Grid((20, 24, 28), Affine.from_spacing((3.0, 1.5, 1.0), origin_lps_mm=(-7.0, 11.0, 40.0)))


def turned(grid: Grid) -> Grid:
    """The same region with X first and flipped, Z last."""
    axes = grid.affine.axes_lps[:, [2, 1, 0]] * np.array([-1.0, 1.0, 1.0])
    z, y, x = grid.spacing_zyx_mm
    shape = (grid.shape_zyx[2], grid.shape_zyx[1], grid.shape_zyx[0])
    origin = grid.affine.to_points((0, 0, grid.shape_zyx[2] - 1))
    affine = Affine.from_spacing(
        (x, y, z), origin_lps_mm=(float(origin[0]), float(origin[1]), float(origin[2])), axes_lps=axes
    )
    return Grid(shape, affine)


def test_preprocessing_survives_json() -> None:
    before = Preprocessing(spacing_zyx_mm=(3, 1.25, 1.25), windows=((-500.0, 500.0),), crop="body")
    assert Preprocessing.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_zyx_mm": (0.0, 1.0, 1.0)},
        {"windows": ((10.0, 10.0),)},
        {"windows": ()},
        {"crop": "arms"},
        {"margin_mm": -1.0},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Preprocessing(**{"spacing_zyx_mm": (1.0, 1.0, 1.0), **change})  # type: ignore[arg-type]


def test_the_same_patient_in_another_orientation_gives_the_same_network_image(
    rng: np.random.Generator,
) -> None:
    values = rng.integers(-1000, 1000, STANDARD.shape_zyx, dtype=np.int16)
    other = turned(STANDARD)
    moved = Volume(np.ascontiguousarray(values.transpose(2, 1, 0)[::-1]), other)
    settings = Preprocessing(spacing_zyx_mm=(3.0, 2.0, 2.0))
    first, second = prepare_image(Volume(values, STANDARD), settings), prepare_image(moved, settings)
    assert first.grid.is_same_as(second.grid)
    assert np.abs(first.array.astype(int) - second.array).max() <= 1


def test_an_image_on_the_wanted_grid_is_passed_through_unchanged(rng: np.random.Generator) -> None:
    values = rng.integers(-1000, 1000, STANDARD.shape_zyx, dtype=np.int16)
    prepared = prepare_image(Volume(values, STANDARD), Preprocessing(spacing_zyx_mm=(3.0, 1.5, 1.0)))
    assert np.array_equal(prepared.array, values)


def test_a_mask_goes_to_the_network_grid_and_back_within_its_resolution() -> None:
    mask = ball_mask(STANDARD, (10, 12, 14), 9.0)
    target = network_grid(STANDARD, (3.0, 2.0, 2.0))
    there = prepare_mask(mask, STANDARD, target)
    back = map_to_grid(Volume(there.astype(np.float32), target), STANDARD)
    volume = mask.sum() * STANDARD.affine.voxel_volume_mm3
    assert there.sum() * target.affine.voxel_volume_mm3 == pytest.approx(volume, rel=0.08)
    assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) > 0.93


def test_mapping_only_the_box_equals_mapping_everything(rng: np.random.Generator) -> None:
    from consilium.geometry.resample import resample_probability

    target = network_grid(STANDARD, (2.5, 2.0, 2.0))
    smooth = np.zeros(target.shape_zyx, dtype=np.float32)
    smooth[0:5, 3:9, 10:] = rng.random((5, 6, target.shape_zyx[2] - 10), dtype=np.float32)
    for grid in (STANDARD, turned(STANDARD)):
        assert np.array_equal(
            map_to_grid(Volume(smooth, target), grid), resample_probability(Volume(smooth, target), grid)
        )
    nothing = map_to_grid(Volume(np.zeros_like(smooth), target), STANDARD)
    assert nothing.shape == STANDARD.shape_zyx
    assert not nothing.any()


def test_windows_become_channels_between_minus_one_and_one() -> None:
    image = torch.tensor([[[-2000, -1000, 0, 40, 240, 3000]]], dtype=torch.int16)
    channels = to_channels(image, ((-1000.0, 1000.0), (-160.0, 240.0)))
    assert channels.shape == (2, 1, 1, 6)
    assert channels[0, 0, 0].tolist() == pytest.approx([-1, -1, 0, 0.04, 0.24, 1])
    assert channels[1, 0, 0].tolist() == pytest.approx([-1, -1, -0.2, 0, 1, 1])


def test_both_legs_stay_in_the_body_box() -> None:
    grid = Grid((20, 60, 80), Affine.from_spacing((4.0, 4.0, 4.0)))
    values = np.full(grid.shape_zyx, -1000, dtype=np.int16)
    values[:, 20:40, 10:25] = 30
    values[:, 22:38, 50:66] = 30
    values[3, 2, 78] = 500  # a speck
    box = find_body(Volume(values, grid), 0.0)
    assert (box.start_zyx, box.stop_zyx) == ((0, 20, 10), (20, 40, 66))
    cropped = prepare_image(
        Volume(values, grid), Preprocessing(spacing_zyx_mm=(4.0, 4.0, 4.0), crop="body", margin_mm=8.0)
    )
    assert cropped.grid.shape_zyx == (20, 24, 60)
    assert cropped.grid.affine.to_points((0, 2, 2)).tolist() == grid.affine.to_points((0, 20, 10)).tolist()


def test_an_image_of_air_is_kept_whole() -> None:
    grid = Grid((4, 5, 6), Affine.from_spacing((1.0, 1.0, 1.0)))
    assert find_body(Volume(np.full(grid.shape_zyx, -1000, np.int16), grid), 5.0).shape_zyx == grid.shape_zyx


def test_nan_in_an_image_is_refused() -> None:
    values = np.zeros(STANDARD.shape_zyx, dtype=np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        prepare_image(Volume(values, STANDARD), Preprocessing(spacing_zyx_mm=(1.0, 1.0, 1.0)))
