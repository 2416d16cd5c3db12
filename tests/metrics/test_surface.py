"""Surface figures against closed forms, a brute-force computation and google's surface-distance."""

import math
import warnings

import numpy as np
import pytest

from consilium.errors import ConfigurationError, GeometryError
from consilium.geometry.marching_cubes import compute_block_areas
from consilium.metrics.distance import distances_to_nearest
from consilium.metrics.surface import bounding_box, compute_surface_distances
from consilium.types import Array, Mask, Triple
from tests.metrics.shapes import ball, box, speckle

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1), (0.5, 2.0, 1.25)]


def brute_surface(mask: Mask, spacing: Triple) -> tuple[Array, Array]:
    """Positions and areas of the surface elements, corner by corner in plain loops."""
    padded = np.pad(mask, 1)
    areas = compute_block_areas(spacing)
    points, weights = [], []
    for z in range(padded.shape[0] - 1):
        for y in range(padded.shape[1] - 1):
            for x in range(padded.shape[2] - 1):
                block = padded[z : z + 2, y : y + 2, x : x + 2].ravel()[::-1]
                code = sum(1 << bit for bit, inside in enumerate(block) if inside)
                if 0 < code < 255:
                    points.append(np.array([z, y, x]) * spacing)
                    weights.append(areas[code])
    return np.array(points), np.array(weights)


def brute_figures(reference: Mask, prediction: Mask, spacing: Triple, tolerance: float) -> dict[str, float]:
    a, area_a = brute_surface(reference, spacing)
    b, area_b = brute_surface(prediction, spacing)
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    to_b, to_a = table.min(axis=1), table.min(axis=0)
    near = area_a[to_b <= tolerance].sum() + area_b[to_a <= tolerance].sum()
    return {
        "hausdorff": max(to_b.max(), to_a.max()),
        "mean": ((to_b * area_a).sum() + (to_a * area_b).sum()) / (area_a.sum() + area_b.sum()),
        "surface_dice": near / (area_a.sum() + area_b.sum()),
    }


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_figures_equal_a_brute_force_computation(
    spacing: Triple, share: float, rng: np.random.Generator
) -> None:
    reference, prediction = speckle(rng, (7, 9, 8), share), speckle(rng, (7, 9, 8), 0.1)
    ours = compute_surface_distances(reference, prediction, spacing)
    brute = brute_figures(reference, prediction, spacing, 1.5)
    assert ours.hausdorff_mm() == pytest.approx(brute["hausdorff"], abs=1e-12)
    assert ours.mean_mm() == pytest.approx(brute["mean"], abs=1e-12)
    assert ours.surface_dice(1.5) == pytest.approx(brute["surface_dice"], abs=1e-12)


def test_a_slab_shifted_along_z_is_off_by_its_shift_times_the_spacing() -> None:
    spacing = (2.5, 1.0, 1.0)
    reference = box((20, 6, 6), (4, 0, 0), (8, 6, 6))
    prediction = box((20, 6, 6), (6, 0, 0), (10, 6, 6))
    distances = compute_surface_distances(reference, prediction, spacing)
    assert distances.hausdorff_mm() == pytest.approx(5.0)
    assert distances.surface_dice(5.0) == 1.0
    assert distances.surface_dice(4.999) < 1.0


def test_parallel_planes_have_distances_known_on_paper() -> None:
    n = 41
    reference = box((30, n, n), (5, 0, 0), (6, n, n))
    prediction = box((30, n, n), (15, 0, 0), (16, n, n))
    distances = compute_surface_distances(reference, prediction, (2.0, 1.0, 1.0))
    # Each one-voxel plane has two sheets of surface: 18 and 20 mm from the other plane's nearer sheet.
    assert distances.hausdorff_mm() == pytest.approx(20.0)
    assert distances.reference_mm.min() == pytest.approx(18.0)
    assert distances.mean_mm() == pytest.approx(19.0)
    assert distances.hausdorff_mm(40) == pytest.approx(18.0)


def test_concentric_balls_are_apart_by_the_difference_of_their_radii() -> None:
    spacing = (1.0, 0.5, 0.5)
    shape = (49, 97, 97)
    small, large = (ball(shape, (24, 48, 48), radius, spacing) for radius in (15.0, 20.0))
    distances = compute_surface_distances(small, large, spacing)
    # A surface element sits at a voxel corner, so a gap reads up to half a voxel small.
    assert 4.5 < distances.mean_mm() < 5.0
    assert distances.hausdorff_mm(95) == pytest.approx(5.0, abs=0.5)
    assert distances.surface_dice(3.5) == 0.0
    assert distances.surface_dice(6.5) == 1.0


def test_equal_masks_have_no_distance(rng: np.random.Generator) -> None:
    mask = speckle(rng, (6, 6, 6), 0.5)
    distances = compute_surface_distances(mask, mask, (3.0, 1.0, 1.0))
    assert distances.hausdorff_mm() == 0
    assert distances.surface_dice(0) == 1


def test_a_structure_cut_by_the_edge_of_the_grid_has_a_surface_there() -> None:
    full = np.ones((3, 4, 5), bool)
    inner = np.pad(full, 2)
    on_edge = compute_surface_distances(full, full, (1.0, 1.0, 1.0))
    inside = compute_surface_distances(inner, inner, (1.0, 1.0, 1.0))
    assert on_edge.reference_mm2.sum() == pytest.approx(inside.reference_mm2.sum())


def test_swapping_the_masks_swaps_the_directed_means(rng: np.random.Generator) -> None:
    a, b = speckle(rng, (6, 7, 8), 0.2), speckle(rng, (6, 7, 8), 0.4)
    forth = compute_surface_distances(a, b, (2.0, 1.0, 1.5))
    back = compute_surface_distances(b, a, (2.0, 1.0, 1.5))
    assert forth.directed_means_mm() == back.directed_means_mm()[::-1]
    assert forth.hausdorff_mm(95) == back.hausdorff_mm(95)


def test_empty_masks_have_the_documented_values() -> None:
    empty, some = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    both = compute_surface_distances(empty, empty, (1.0, 1.0, 1.0))
    assert math.isnan(both.hausdorff_mm(95))
    assert math.isnan(both.mean_mm())
    assert math.isnan(both.surface_dice(1))
    for a, b in ((empty, some), (some, empty)):
        one = compute_surface_distances(a, b, (1.0, 1.0, 1.0))
        assert one.hausdorff_mm(95) == math.inf
        assert one.mean_mm() == math.inf
        assert one.directed_means_mm() == (math.inf, math.inf)
        assert one.surface_dice(1) == 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_distances_equal_the_nearest_of_all_marked_voxels(spacing: Triple, rng: np.random.Generator) -> None:
    marked = speckle(rng, (11, 12, 13), 0.004)
    marked[3, 4, 5] = True
    points = np.argwhere(np.ones(marked.shape, bool))
    table = (points[:, None] - np.argwhere(marked)[None]) * np.array(spacing)
    expected = np.sqrt((table**2).sum(-1)).min(axis=1)
    np.testing.assert_allclose(distances_to_nearest(marked, points, spacing), expected, atol=1e-12)


def test_distance_to_nothing_is_infinite() -> None:
    points = np.zeros((2, 3), int)
    assert np.isinf(distances_to_nearest(np.zeros((3, 3, 3), bool), points, (1.0, 1.0, 1.0))).all()


def test_the_bounding_box_holds_both_masks() -> None:
    a, b = box((9, 9, 9), (1, 2, 3), (3, 4, 5)), box((9, 9, 9), (4, 1, 3), (5, 3, 8))
    assert bounding_box(a, b) == (slice(1, 5), slice(1, 4), slice(3, 8))
    assert bounding_box(np.zeros_like(a)) == (slice(0, 0),) * 3


def test_masks_that_cannot_be_compared_are_refused() -> None:
    mask = np.zeros((3, 3, 3), bool)
    with pytest.raises(GeometryError, match="one grid"):
        compute_surface_distances(mask, np.zeros((3, 3, 4), bool), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="boolean"):
        compute_surface_distances(mask, np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="positive"):
        compute_surface_distances(mask, mask, (1.0, 0.0, 1.0))
    distances = compute_surface_distances(mask, mask, (1.0, 1.0, 1.0))
    with pytest.raises(ConfigurationError, match="tolerance_mm"):
        distances.surface_dice(-1)
    with pytest.raises(ConfigurationError, match="percentile"):
        distances.hausdorff_mm(0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.filterwarnings("ignore")
def test_figures_equal_google_surface_distance(spacing: Triple, rng: np.random.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("surface_distance", reason="the peer package surface-distance is absent")
    lookup = pytest.importorskip("surface_distance.lookup_tables")
    areas = lookup.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(compute_block_areas(spacing), areas, atol=1e-12)
    pairs = [(speckle(rng, (9, 11, 10), p), speckle(rng, (9, 11, 10), 0.4)) for p in (0.02, 0.3, 0.7)]
    shape = (20, 40, 40)
    pairs.append((ball(shape, (9, 20, 19), 8.0, spacing), ball(shape, (10, 18, 22), 7.0, spacing)))
    for reference, prediction in pairs:
        ours = compute_surface_distances(reference, prediction, spacing)
        theirs = peer.compute_surface_distances(reference, prediction, spacing)
        assert ours.hausdorff_mm(95) == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), abs=1e-6)
        assert ours.hausdorff_mm() == pytest.approx(peer.compute_robust_hausdorff(theirs, 100), abs=1e-6)
        means = peer.compute_average_surface_distance(theirs)
        assert ours.directed_means_mm() == pytest.approx(means, abs=1e-6)
        expected = peer.compute_surface_dice_at_tolerance(theirs, 1.0)
        assert ours.surface_dice(1.0) == pytest.approx(expected, abs=1e-6)
