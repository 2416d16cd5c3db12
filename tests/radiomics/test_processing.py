"""Resampling, re-segmentation and discretisation by IBSI's rules, and the record beside each value."""

import math

import numpy as np
import pytest

from consilium.errors import ConfigurationError, GeometryError
from consilium.radiomics.features import compute_features
from consilium.radiomics.region import discretise, prepare_region
from consilium.radiomics.settings import (
    AGGREGATION_CODES,
    FixedBinNumber,
    FixedBinWidth,
    IntegerLevels,
    RadiomicsSettings,
)

CUBE = np.zeros((20, 22, 24), bool)
CUBE[5:15, 6:16, 7:17] = True


def test_fixed_bin_numbers_span_the_range() -> None:
    levels, count = discretise(np.array([0.0, 2.4, 2.5, 7.5, 9.99, 10.0]), FixedBinNumber(4), None)
    assert levels.tolist() == [1, 1, 2, 4, 4, 4]
    assert count == 4


def test_fixed_bin_widths_start_at_the_range_or_the_least_intensity() -> None:
    values = np.array([-990.0, -976.0, -975.0, 10.0])
    levels, count = discretise(values, FixedBinWidth(25.0), (-1000.0, 400.0))
    assert levels.tolist() == [1, 1, 2, 41]
    assert count == 41
    assert discretise(values, FixedBinWidth(25.0), None)[0].tolist() == [1, 1, 1, 41]
    assert discretise(values, FixedBinWidth(25.0, origin=-980.0), None)[0].tolist() == [1, 1, 1, 40]


def test_levels_taken_as_they_are_must_be_positive_integers() -> None:
    assert discretise(np.array([1.0, 5.0]), IntegerLevels(), None)[1] == 5
    for values in ([0.0, 1.0], [1.5, 2.0]):
        with pytest.raises(GeometryError, match="integers from 1"):
            discretise(np.array(values), IntegerLevels(), None)
    with pytest.raises(GeometryError, match="1024"):
        discretise(np.array([0.0, 1e6]), FixedBinWidth(1.0), None)


def test_a_flat_region_has_one_level() -> None:
    levels, _ = discretise(np.full(5, 3.0), FixedBinNumber(8), None)
    assert set(levels.tolist()) == {1}


def test_intensity_range_and_outliers_leave_the_contour_alone(rng: np.random.Generator) -> None:
    image = rng.normal(0, 100, CUBE.shape)
    settings = RadiomicsSettings(rounded=False, intensity_range=(-50, 80), outlier_sigma=1.0)
    region = prepare_region(image, CUBE, (1.0, 1.0, 1.0), settings)
    values = image[CUBE]
    kept = (values >= -50) & (values <= 80) & (np.abs(values - values.mean()) <= values.std())
    assert region.mask.sum() == CUBE.sum()
    assert region.intensity_mask.sum() == kept.sum() < CUBE.sum()
    assert (region.levels > 0).sum() == kept.sum()


def test_resampling_keeps_linear_images_and_the_size_of_the_contour() -> None:
    z, y, x = np.mgrid[:20, :22, :24].astype(float)
    image = 3 * z + 2 * y - x
    settings = RadiomicsSettings(
        rounded=False, resampled_spacing_zyx_mm=(1.0, 1.0, 1.0), discretisation=FixedBinNumber(8)
    )
    region = prepare_region(image, CUBE, (2.0, 0.5, 0.5), settings)
    assert region.spacing_zyx_mm == pytest.approx((1.0, 1.0, 1.0))
    # 20 x 5 x 5 mm; voxels reached by half are taken in, so that a side may gain one of 1 mm in all.
    assert np.ptp(np.argwhere(region.mask), axis=0).tolist() == pytest.approx([19, 4, 4], abs=1)
    steps = np.diff(region.image, axis=0)[region.mask[1:] & region.mask[:-1]]
    np.testing.assert_allclose(steps, 1.5)
    mean = 3 * 9.5 + 2 * 10.5 - 11.5
    assert region.intensities.mean() == pytest.approx(mean, abs=0.8)


def test_resampling_near_a_small_contour_equals_resampling_everything(rng: np.random.Generator) -> None:
    image = rng.normal(0, 1, (40, 60, 60))
    mask = np.zeros(image.shape, bool)
    mask[20:23, 30:36, 28:34] = True
    spacing = (2.5, 0.9, 0.9)
    settings = RadiomicsSettings(
        rounded=False, resampled_spacing_zyx_mm=(1.0, 1.0, 1.0), discretisation=FixedBinNumber(8)
    )
    near = prepare_region(image, mask, spacing, settings)
    wide = mask.copy()
    wide[0, 0, 0] = wide[-1, -1, -1] = True
    everything = prepare_region(image, wide, spacing, settings)
    z, y, x = np.argwhere(everything.mask[10:-10, 10:-10, 10:-10]).min(axis=0) + 10
    depth, height, width = np.ptp(np.argwhere(near.mask), axis=0) + 1
    whole = everything.image[z : z + depth, y : y + height, x : x + width]
    np.testing.assert_allclose(near.core.image, whole, atol=1e-9)


def test_values_come_with_name_code_unit_and_processing(rng: np.random.Generator) -> None:
    image = rng.normal(0, 100, CUBE.shape)
    settings = RadiomicsSettings(intensity_range=(-1000, 400), resampled_spacing_zyx_mm=(1.0, 1.0, 1.0))
    features = {f.tag: f for f in compute_features(image, CUBE, (1.0, 1.0, 1.0), settings)}
    contrast = features["cm_contrast_3D_avg"]
    assert (contrast.ibsi_code, contrast.aggregation_code) == ("ACUI", "ITBB")
    assert contrast.processing == (
        "trilinear to 1x1x1 mm (z, y, x); intensities rounded; -1000 to 400 HU; "
        "fixed bin width 25 HU from -1000 HU; volume histogram: steps of 1"
    )
    assert features["stat_var"].unit == "HU^2"
    assert features["morph_integ_int"].unit == "HU mm3"
    assert features["szm_sze_3D"].aggregation_code == "KOBO"
    assert set(contrast.as_dict()) >= {"tag", "value", "unit", "ibsi_code", "processing"}


def test_only_the_wanted_families_and_ways_are_computed(rng: np.random.Generator) -> None:
    image = rng.normal(0, 100, CUBE.shape)
    settings = RadiomicsSettings(
        families=("grey level size zone matrix",), aggregations=("2D_avg", "2D_comb", "3D_avg")
    )
    features = compute_features(image, CUBE, (1.0, 1.0, 1.0), settings)
    assert {f.family for f in features} == {"grey level size zone matrix"}
    assert {f.aggregation for f in features} == {"2D", "3D"}


def test_moving_the_contour_with_its_image_changes_nothing(rng: np.random.Generator) -> None:
    image = rng.normal(0, 100, CUBE.shape)
    settings = RadiomicsSettings(aggregations=tuple(AGGREGATION_CODES))
    spacing = (2.0, 1.0, 1.5)
    here = compute_features(image, CUBE, spacing, settings)
    there = compute_features(
        np.pad(image, ((3, 0), (1, 4), (2, 2)), mode="edge"),
        np.pad(CUBE, ((3, 0), (1, 4), (2, 2))),
        spacing,
        settings,
    )
    for a, b in zip(here, there, strict=True):
        if a.family != "local intensity":
            assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-9), a.tag


def test_a_single_voxel_has_values_or_none_but_no_error() -> None:
    image = np.full((3, 3, 3), 40.0)
    mask = np.zeros(image.shape, bool)
    mask[1, 1, 1] = True
    settings = RadiomicsSettings(aggregations=tuple(AGGREGATION_CODES))
    values = {f.tag: f.value for f in compute_features(image, mask, (1.0, 1.0, 1.0), settings)}
    assert len(values) == 482
    assert values["stat_mean"] == 40
    assert values["morph_vol_approx"] == 1
    assert math.isnan(values["cm_contrast_3D_avg"])
    assert math.isnan(values["morph_pca_elongation"])
    assert values["rlm_sre_2D_avg"] == 1
    assert not any(math.isinf(value) for value in values.values())


def test_inputs_that_cannot_be_are_refused() -> None:
    image = np.zeros((4, 4, 4))
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(GeometryError, match="at least one voxel"):
        compute_features(image, ~mask, (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="one grid"):
        compute_features(image, mask[1:], (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="finite"):
        compute_features(np.full((4, 4, 4), np.nan), mask, (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="Widen the range"):
        compute_features(image, mask, (1.0, 1.0, 1.0), RadiomicsSettings(intensity_range=(5, 9)))
    with pytest.raises(GeometryError, match="positive"):
        compute_features(image, mask, (1.0, -1.0, 1.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"resampled_spacing_zyx_mm": (1.0, 0.0, 1.0)},
        {"intensity_range": (5.0, 5.0)},
        {"outlier_sigma": 0.0},
        {"distance": 0},
        {"coarseness": -1},
        {"families": ("colour",)},
        {"aggregations": ("4D",)},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigurationError):
        RadiomicsSettings(**settings)


def test_bins_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="bins"):
        FixedBinNumber(1)
    with pytest.raises(ConfigurationError, match="width"):
        FixedBinWidth(0.0)
