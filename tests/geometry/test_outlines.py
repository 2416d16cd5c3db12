"""Mask to polygons: read back exactly by readers that combine by exclusive or and by union."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as PolygonPath
from scipy import ndimage

from consilium.errors import GeometryError
from consilium.geometry.contours import mask_from_polygons, polygon_area_mm2
from consilium.geometry.outlines import iterate_outlines, polygons_from_mask
from consilium.geometry.volume import Grid
from consilium.types import Array, FloatArray, Mask
from tests.geometry.grids import grid, orientations

SPACING = (2.5, 0.9, 1.1)
ORIENTATIONS = dict(orientations())
every_orientation = pytest.mark.parametrize("axes", list(ORIENTATIONS.values()), ids=list(ORIENTATIONS))


def blobs(shape: tuple[int, int, int], seed: int = 5) -> Mask:
    """Smooth noise above a threshold: many parts, holes, islands in holes, corners that touch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0.6, 1.6, 1.6))
    return np.asarray(noise > 0.02)


def union_of_polygons(polygons: list[Array], target: Grid) -> Mask:
    """A reader that fills every polygon by itself and adds up, by matplotlib."""
    mask = np.zeros(target.shape_zyx, dtype=bool)
    _, ny, nx = target.shape_zyx
    y, x = np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij")
    centres = np.stack([y.ravel(), x.ravel()], axis=1)
    for polygon in polygons:
        index = target.affine.to_indices(polygon)
        path = PolygonPath(index[:, 1:])
        mask[round(float(index[0, 0]))] |= path.contains_points(centres).reshape(ny, nx)
    return mask


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_reads_back_by_exclusive_or_and_by_union(mask: Mask) -> None:
    target = grid(mask.shape, SPACING)
    polygons = polygons_from_mask(mask, target)
    np.testing.assert_array_equal(mask_from_polygons(polygons, target), mask)
    np.testing.assert_array_equal(union_of_polygons(polygons, target), mask)
    assert all(len(polygon) >= 4 for polygon in polygons)


@every_orientation
def test_round_trip_is_exact_in_every_orientation(axes: FloatArray) -> None:
    mask = blobs((4, 40, 33))
    target = grid(mask.shape, SPACING, axes)
    polygons = polygons_from_mask(mask, target)
    np.testing.assert_array_equal(mask_from_polygons(polygons, target), mask)


def test_noise_with_many_holes_reads_back_by_union() -> None:
    mask = np.random.default_rng(3).random((2, 60, 50)) > 0.35
    target = grid(mask.shape, SPACING)
    polygons = polygons_from_mask(mask, target)
    np.testing.assert_array_equal(union_of_polygons(polygons, target), mask)
    np.testing.assert_array_equal(mask_from_polygons(polygons, target), mask)


def test_there_is_one_outline_per_part_and_holes_have_none() -> None:
    mask = blobs((3, 60, 50))
    parts = sum(ndimage.label(plane)[1] for plane in mask)
    assert len(polygons_from_mask(mask, grid(mask.shape, SPACING))) == parts


def test_the_outlines_enclose_the_area_of_the_voxels() -> None:
    mask = blobs((3, 60, 50))
    target = grid(mask.shape, SPACING)
    for z, polygons in iterate_outlines(mask, target):
        area = sum(polygon_area_mm2(polygon) for polygon in polygons)
        assert area == pytest.approx(np.count_nonzero(mask[z]) * 0.9 * 1.1)


def test_a_rectangle_has_four_points_on_its_pixel_edges() -> None:
    mask = np.zeros((3, 10, 12), dtype=bool)
    mask[1, 2:5, 3:9] = True
    target = grid(mask.shape, SPACING)
    (polygon,) = polygons_from_mask(mask, target)
    index = np.round(target.affine.to_indices(polygon), 9)
    assert {tuple(point) for point in index.tolist()} == {
        (1, 1.5, 2.5),
        (1, 1.5, 8.5),
        (1, 4.5, 8.5),
        (1, 4.5, 2.5),
    }


def test_pixels_that_touch_at_a_corner_get_outlines_of_their_own() -> None:
    mask = np.array([[[1, 0], [0, 1]]], dtype=bool)
    polygons = polygons_from_mask(mask, grid(mask.shape, SPACING))
    assert [len(polygon) for polygon in polygons] == [4, 4]


def test_an_island_in_a_hole_keeps_an_outline_of_its_own() -> None:
    mask = np.zeros((1, 15, 15), dtype=bool)
    mask[0, 1:14, 1:14] = True
    mask[0, 3:12, 3:12] = False
    mask[0, 6:9, 6:9] = True
    target = grid(mask.shape, SPACING)
    polygons = polygons_from_mask(mask, target)
    assert len(polygons) == 2
    np.testing.assert_array_equal(union_of_polygons(polygons, target), mask)


@pytest.mark.parametrize("index", [(0, 0, 0), (2, 3, 4)])
def test_one_voxel_even_at_the_rim_is_a_square(index: tuple[int, int, int]) -> None:
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[index] = True
    target = grid(mask.shape, SPACING)
    np.testing.assert_array_equal(mask_from_polygons(polygons_from_mask(mask, target), target), mask)


def test_an_empty_mask_has_no_polygons() -> None:
    assert polygons_from_mask(np.zeros((3, 4, 5), dtype=bool), grid((3, 4, 5), SPACING)) == []


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(GeometryError, match="one shape"):
        polygons_from_mask(np.zeros((3, 4, 5), dtype=bool), grid((3, 5, 4), SPACING))
