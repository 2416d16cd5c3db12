"""Shape and intensity features against closed forms and plain loops."""

import math

import numpy as np
import pytest
from scipy.special import eval_legendre

from consilium.radiomics import morphology
from consilium.radiomics.features import compute_features
from consilium.radiomics.local_intensity import compute_local_intensity
from consilium.radiomics.morphology import ibsi_ellipsoid_area, spatial_autocorrelation, surface_points
from consilium.radiomics.region import PEAK_RADIUS_MM, prepare_region
from consilium.radiomics.settings import FixedBinNumber, IntegerLevels, RadiomicsSettings
from consilium.types import Array, Mask

PLAIN = ("morphology", "local intensity", "intensity statistics", "intensity-volume histogram")


def values_of(image: Array, mask: Mask, spacing: tuple[float, float, float]) -> dict[str, float]:
    settings = RadiomicsSettings(families=PLAIN, rounded=False, volume_histogram=FixedBinNumber(1000))
    return {f.tag: f.value for f in compute_features(image, mask, spacing, settings)}


def test_a_ball_has_the_shape_of_a_sphere(rng: np.random.Generator) -> None:
    radius, spacing = 15.0, (1.0, 0.8, 0.8)
    z, y, x = np.mgrid[:41, :51, :51]
    mask = ((z - 20) * 1.0) ** 2 + ((y - 25) * 0.8) ** 2 + ((x - 25) * 0.8) ** 2 <= radius**2
    values = values_of(rng.normal(0, 10, mask.shape), mask, spacing)
    assert values["morph_volume"] == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert values["morph_diam"] == pytest.approx(2 * radius, abs=1.0)
    assert values["morph_pca_elongation"] == pytest.approx(1, abs=0.02)
    assert values["morph_pca_maj_axis"] == pytest.approx(4 * radius / math.sqrt(5), rel=0.02)
    assert 0.9 < values["morph_sphericity"] < 1
    assert values["morph_vol_dens_aabb"] == pytest.approx(math.pi / 6, rel=0.05)
    assert 0.95 < values["morph_vol_dens_conv_hull"] <= 1


def test_a_box_has_the_axes_of_a_box(rng: np.random.Generator) -> None:
    mask = np.zeros((12, 14, 30), bool)
    mask[1:11, 2:12, 3:28] = True
    spacing = (2.0, 1.0, 1.0)
    values = values_of(rng.normal(0, 1, mask.shape), mask, spacing)
    assert values["morph_vol_approx"] == 10 * 10 * 25 * 2

    def axis(n: int, step: float) -> float:
        variance = np.var(np.arange(n) * step) * 2500 / 2499
        return 4 * math.sqrt(variance)

    assert values["morph_pca_maj_axis"] == pytest.approx(axis(25, 1))
    assert values["morph_pca_min_axis"] == pytest.approx(axis(10, 2))
    assert values["morph_pca_least_axis"] == pytest.approx(axis(10, 1))
    # Bevelled edges lie half a voxel inside the box's corners.
    assert values["morph_diam"] < math.sqrt(20**2 + 10**2 + 25**2)
    assert values["morph_diam"] > math.sqrt(18**2 + 9**2 + 24**2)


def test_surface_points_of_a_voxel_are_its_face_centres() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    points = surface_points(mask, (2.0, 1.0, 1.0)) - np.array([4.0, 2.0, 2.0])
    found = {tuple(p.tolist()) for p in points}
    assert found == {(-1, 0, 0), (1, 0, 0), (0, -0.5, 0), (0, 0.5, 0), (0, 0, -0.5), (0, 0, 0.5)}


def test_ellipsoid_series_is_that_of_the_standard() -> None:
    a, b, c = 5.7, 4.65, 4.27
    alpha, beta = math.sqrt(1 - (b / a) ** 2), math.sqrt(1 - (c / a) ** 2)
    argument = (alpha**2 + beta**2) / (2 * alpha * beta)
    terms = [(alpha * beta) ** v / (1 - 4 * v * v) * eval_legendre(v, argument) for v in range(21)]
    assert ibsi_ellipsoid_area(a, b, c) == pytest.approx(4 * math.pi * a * b * sum(terms))
    assert ibsi_ellipsoid_area(3, 3, 3) == pytest.approx(4 * math.pi * 9)
    assert ibsi_ellipsoid_area(0, 0, 0) == 0


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 5, 8), (1, 6, 6)])
def test_spatial_autocorrelation_sums_every_pair(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    image, mask = rng.normal(5, 2, shape), rng.random(shape) < 0.6
    spacing = (2.5, 1.0, 0.7)
    points, values = np.argwhere(mask) * spacing, image[mask]
    with np.errstate(divide="ignore"):
        weights = 1 / np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    np.fill_diagonal(weights, 0)
    deviation = values - values.mean()
    spread, count = (deviation**2).sum(), len(values)
    moran = count / weights.sum() * (weights * np.outer(deviation, deviation)).sum() / spread
    squares = (values[:, None] - values[None]) ** 2
    geary = (count - 1) / (2 * weights.sum()) * (weights * squares).sum() / spread
    assert spatial_autocorrelation(image, mask, spacing) == pytest.approx((moran, geary))


def test_spatial_autocorrelation_of_a_flat_region_is_not_a_number() -> None:
    flat = np.ones((3, 3, 3))
    assert all(math.isnan(v) for v in spatial_autocorrelation(flat, flat > 0, (1.0, 1.0, 1.0)))


def test_spatial_autocorrelation_of_a_huge_region_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).normal(0, 1, (6, 6, 6))
    assert math.isfinite(spatial_autocorrelation(image, image > -9, (1.0, 1.0, 1.0))[0])
    monkeypatch.setattr(morphology, "MAX_CORRELATED_VOXELS", 1000)
    assert math.isnan(spatial_autocorrelation(image, image > -9, (1.0, 1.0, 1.0))[0])


def test_local_peaks_average_over_a_cubic_centimetre(rng: np.random.Generator) -> None:
    spacing = (3.0, 2.0, 1.5)
    image = rng.normal(0, 1, (9, 12, 14))
    mask = np.zeros(image.shape, bool)
    mask[2:6, 4:9, 5:11] = True
    region = prepare_region(
        image, mask, spacing, RadiomicsSettings(rounded=False, discretisation=FixedBinNumber(8))
    )
    values = compute_local_intensity(region)
    everything = np.argwhere(np.ones(image.shape, bool)) * spacing
    means = {}
    for point in np.argwhere(mask):
        near = ((everything - point * spacing) ** 2).sum(1) <= PEAK_RADIUS_MM**2
        means[tuple(point)] = image.ravel()[near].mean()
    brightest = max(means, key=lambda p: image[p])
    assert values["loc_peak_loc"] == pytest.approx(means[brightest])
    assert values["loc_peak_glob"] == pytest.approx(max(means.values()))


def test_statistics_of_a_ramp_are_those_on_paper() -> None:
    image = np.arange(1.0, 101.0).reshape(1, 10, 10)
    values = values_of(image, np.ones(image.shape, bool), (1.0, 1.0, 1.0))
    assert values["stat_mean"] == values["stat_median"] == 50.5
    assert values["stat_var"] == pytest.approx((100**2 - 1) / 12)
    assert values["stat_skew"] == pytest.approx(0, abs=1e-12)
    assert values["stat_medad"] == values["stat_mad"] == 25
    assert values["stat_energy"] == 338350
    assert values["stat_qcod"] == pytest.approx(49.5 / 101)
    assert values["ivh_v10"] == pytest.approx(0.90)
    assert values["ivh_v90"] == pytest.approx(0.10)


def test_volume_histogram_in_steps_of_one_counts_whole_intensities() -> None:
    image = np.repeat([0.0, 50.0, 100.0, 100.0], 5).reshape(1, 4, 5)
    settings = RadiomicsSettings(families=("intensity-volume histogram",), volume_histogram=IntegerLevels())
    features = compute_features(image, np.ones(image.shape, bool), (1.0, 1.0, 1.0), settings)
    values = {f.tag: f.value for f in features}
    assert values["ivh_v10"] == 0.75
    assert values["ivh_v90"] == 0.5
    assert values["ivh_i90"] == 1
    assert values["ivh_i10"] == 100


def test_centre_of_mass_shift_points_to_the_bright_side() -> None:
    image = np.ones((1, 1, 4))
    image[..., 2:] = 3
    values = values_of(image, np.ones(image.shape, bool), (1.0, 1.0, 2.0))
    assert values["morph_com"] == pytest.approx(((0 + 1 + 6 + 9) / 8 - 1.5) * 2)
