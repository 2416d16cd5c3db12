"""Polygons to mask against matplotlib's point-in-polygon, and every rule of placing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as PolygonPath

from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.contours import mask_from_polygons, place_polygons, polygon_area_mm2
from consilium.geometry.volume import Grid
from consilium.types import Array, FloatArray, Mask
from tests.geometry.grids import grid, orientations

SHAPE = (5, 41, 37)
SPACING = (3.0, 1.25, 0.9)
ORIENTATIONS = dict(orientations())
every_orientation = pytest.mark.parametrize("axes", list(ORIENTATIONS.values()), ids=list(ORIENTATIONS))


def ellipse(
    target: Grid, z: float, centre_yx: tuple[float, float], radii_yx: tuple[float, float]
) -> FloatArray:
    """An ellipse of 90 points in index coordinates, taken to the patient."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    y = centre_yx[0] + radii_yx[0] * np.cos(angle)
    x = centre_yx[1] + radii_yx[1] * np.sin(angle)
    return target.affine.to_points(np.stack([np.full_like(y, z), y, x], axis=1))


def square(
    target: Grid, z: float, low: tuple[float, float] = (10, 10), high: tuple[float, float] = (20, 20)
) -> FloatArray:
    """A rectangle in index coordinates (y, x)."""
    (y0, x0), (y1, x1) = low, high
    return target.affine.to_points([(z, y0, x0), (z, y0, x1), (z, y1, x1), (z, y1, x0)])


def point_in_polygon(polygons: list[Array], target: Grid) -> Mask:
    """The independent truth: each voxel centre, in millimetres in the plane, against each polygon."""
    truth = np.zeros(target.shape_zyx, dtype=bool)
    _, ny, nx = target.shape_zyx
    _, sy, sx = target.spacing_zyx_mm
    y, x = np.meshgrid(np.arange(ny) * sy, np.arange(nx) * sx, indexing="ij")
    centres = np.stack([y.ravel(), x.ravel()], axis=1)
    for polygon in polygons:
        index = target.affine.to_indices(polygon)
        path = PolygonPath(index[:, 1:] * (sy, sx))
        truth[round(float(index[0, 0]))] ^= path.contains_points(centres).reshape(ny, nx)
    return truth


def dice(a: Mask, b: Mask) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


@every_orientation
def test_nested_ellipses_equal_point_in_polygon_in_every_orientation(axes: FloatArray) -> None:
    target = grid(SHAPE, SPACING, axes)
    polygons = [ellipse(target, z, (20.3, 17.7), (15.1, 11.9)) for z in range(1, 4)]
    polygons += [ellipse(target, z, (19.2, 18.1), (7.3, 6.1)) for z in range(1, 4)]
    polygons += [ellipse(target, 2, (19.2, 18.1), (3.3, 2.1))]
    truth = point_in_polygon(polygons, target)
    assert truth.any()
    assert dice(mask_from_polygons(polygons, target), truth) >= 0.9999


def test_a_sheared_grid_places_by_coordinates() -> None:
    matrix = grid(SHAPE, SPACING).affine.matrix.copy()
    matrix[:3, 0] += (0.0, 0.8, 0.0)
    target = Grid(SHAPE, Affine(matrix))
    assert target.affine.is_sheared
    polygons = [ellipse(target, z, (20.3, 17.7), (15.1, 11.9)) for z in range(5)]
    assert dice(mask_from_polygons(polygons, target), point_in_polygon(polygons, target)) >= 0.9999


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-10, 50), st.floats(-10, 50)), min_size=3, max_size=12),
    st.integers(0, 4),
)
def test_any_polygon_even_self_crossing_equals_even_odd_truth(
    corners: list[tuple[float, float]], z: int
) -> None:
    target = grid(SHAPE, (2.0, 1.0, 1.0))
    index = np.array([(z, y + 0.0137, x + 0.0211) for y, x in corners])
    mask = mask_from_polygons([target.affine.to_points(index)], target)
    _, ny, nx = SHAPE
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij"))
    a, b = index[:, 1:], np.roll(index[:, 1:], -1, axis=0)
    inside = np.zeros(y.shape, dtype=int)
    close = np.zeros(y.shape, dtype=bool)
    for (y0, x0), (y1, x1) in zip(a, b, strict=True):
        if y0 == y1:
            continue
        at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        crosses = (min(y0, y1) <= y) & (y < max(y0, y1))
        inside += crosses & (at <= x)
        close |= (crosses & (np.abs(at - x) < 1e-4)) | (min(abs(y0 - y).min(), abs(y1 - y).min()) < 1e-5)
    truth = (inside % 2 == 1).reshape(ny, nx)
    sure = ~close.reshape(ny, nx)
    np.testing.assert_array_equal(mask[z][sure], truth[sure])


def test_the_volume_of_a_rectangle_on_voxel_centres_is_exact() -> None:
    target = grid(SHAPE, SPACING)
    mask = mask_from_polygons([square(target, 2)], target)
    assert np.count_nonzero(mask) == 100


@every_orientation
def test_rounding_decides_no_tie_on_voxel_centres(axes: FloatArray) -> None:
    target = grid(SHAPE, SPACING, axes)
    mask = mask_from_polygons([square(target, 2)], target)
    assert np.count_nonzero(mask) == 100
    assert mask[2, 10:20, 10:20].all()


def test_a_closed_polygon_equals_an_open_one() -> None:
    target = grid(SHAPE, SPACING)
    opened = ellipse(target, 2, (20.3, 17.7), (15.1, 11.9))
    closed = np.concatenate([opened, opened[:1]])
    np.testing.assert_array_equal(mask_from_polygons([opened], target), mask_from_polygons([closed], target))


def test_a_keyhole_equals_nested_contours() -> None:
    target = grid(SHAPE, SPACING)
    outer, inner = square(target, 2, (4.5, 4.5), (30.5, 30.5)), square(target, 2, (10.3, 9.5), (20.5, 20.5))
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1], outer[:1]])
    nested = mask_from_polygons([outer, inner], target)
    np.testing.assert_array_equal(mask_from_polygons([keyhole], target), nested)
    assert not nested[2, 15, 15]


def test_points_and_lines_cover_nothing_and_are_counted() -> None:
    target = grid(SHAPE, SPACING)
    whole = square(target, 2)
    placed = place_polygons([whole[:1], whole[:2], np.zeros((0, 3)), whole], target)
    assert placed.report.without_area == 3
    assert placed.report.polygons == 4
    assert np.count_nonzero(placed.fill()) == 100
    assert not mask_from_polygons([whole[:2]], target).any()
    assert not mask_from_polygons([], target).any()


def test_contours_between_slices_go_to_the_nearer_one() -> None:
    target = grid(SHAPE, SPACING)
    placed = place_polygons([square(target, 1.3), square(target, 2.8)], target)
    assert placed.slices.tolist() == [1, 3]
    assert placed.report.between_slices == 2
    assert placed.report.largest_offset_mm == pytest.approx(0.9)


def test_contours_halfway_go_each_to_a_slice_of_its_own_even_when_rounded() -> None:
    target = grid((6, 41, 37), (3.27, 1.0, 1.0))
    polygons = [np.round(square(target, z + 0.5), 2) for z in range(5)]
    assert place_polygons(polygons, target).slices.tolist() == [1, 2, 3, 4, 5]


def test_of_planes_finer_than_the_slices_the_nearest_counts_and_nothing_cancels() -> None:
    target = grid(SHAPE, SPACING)
    polygons = [square(target, z) for z in np.arange(0.0, 4.01, 0.25)]
    placed = place_polygons(polygons, target)
    assert placed.slices.tolist() == [0, 1, 2, 3, 4]
    assert placed.report.superseded == 12
    assert np.count_nonzero(placed.fill()) == 500


def test_slices_between_contours_stay_empty_and_are_counted() -> None:
    target = grid(SHAPE, SPACING)
    placed = place_polygons([square(target, 0), square(target, 3)], target)
    assert placed.report.slices_without == 2
    assert placed.fill().any(axis=(1, 2)).tolist() == [True, False, False, True, False]


def test_what_lies_outside_the_volume_is_cut_and_counted() -> None:
    target = grid(SHAPE, SPACING)
    beyond = square(target, 2, (-5, -5), (8, 60))
    placed = place_polygons([square(target, -0.6), square(target, 4.6), beyond], target)
    assert placed.report.outside_slices == 2
    assert placed.report.outside_plane == 1
    mask = placed.fill()
    assert np.count_nonzero(mask) == np.count_nonzero(mask[2, :8]) == 8 * 37


def test_a_polygon_tilted_against_the_slices_is_refused_with_figures() -> None:
    target = grid(SHAPE, SPACING)
    tilted = square(target, 2)
    tilted[0, 2] += 0.75
    with pytest.raises(GeometryError, match=r"parallel to the slices within 0\.2 mm.*0\.75 mm apart"):
        mask_from_polygons([square(target, 1), tilted], target)


def test_a_sagittal_polygon_on_axial_slices_is_refused() -> None:
    target = grid(SHAPE, SPACING)
    sagittal = target.affine.to_points([(0, 10, 15), (0, 20, 15), (4, 20, 15), (4, 10, 15)])
    with pytest.raises(GeometryError, match="other planes"):
        mask_from_polygons([sagittal], target)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_coordinate_that_is_not_finite_is_refused(value: float) -> None:
    target = grid(SHAPE, SPACING)
    broken = square(target, 2)
    broken[1, 1] = value
    with pytest.raises(GeometryError, match="1 of 4 points are not, first point 1"):
        mask_from_polygons([square(target, 1), broken], target)


def test_area_and_volume_follow_from_the_polygons() -> None:
    target = grid(SHAPE, SPACING)
    outer, inner = square(target, 2, (4.5, 4.5), (30.5, 30.5)), square(target, 2, (10.3, 9.5), (20.5, 20.5))
    assert polygon_area_mm2(outer) == pytest.approx(26 * 26 * 1.25 * 0.9)
    assert polygon_area_mm2(outer[:2]) == 0.0
    volume = place_polygons([outer, inner], target).volume_mm3
    assert volume == pytest.approx((26 * 26 - 10.2 * 11) * 1.25 * 0.9 * 3.0)
