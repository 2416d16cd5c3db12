"""Commissioning shapes: areas, volumes and orientations on paper."""

import numpy as np
import pytest

from consilium.geometry.contours import mask_from_polygons, place_polygons
from consilium.phantoms.shapes import Shape, line_mask, orientations, shapes
from tests.geometry.grids import OBLIQUE_AXES_LPS, grid


@pytest.mark.parametrize("shape", shapes(), ids=lambda s: s.name)
def test_outlines_enclose_the_area_on_paper(shape: Shape) -> None:
    target = grid((20, 58, 78), (3.0, 1.25, 1.0), OBLIQUE_AXES_LPS)
    placed = place_polygons(shape.polygons(target), target)
    on_paper = shape.contoured_volume_cm3(target)
    assert placed.volume_mm3 / 1000 == pytest.approx(on_paper, rel=1e-6)
    voxels = np.count_nonzero(placed.fill()) * target.voxel_volume_cm3
    assert voxels == pytest.approx(on_paper, rel=0.01)


@pytest.mark.parametrize("shape", shapes(), ids=lambda s: s.name)
def test_fine_slices_add_up_to_the_solid(shape: Shape) -> None:
    target = grid((2400, 4, 4), (0.025, 20.0, 20.0))
    assert shape.contoured_volume_cm3(target) == pytest.approx(shape.volume_cm3, rel=2e-3)


def test_a_lost_slice_takes_its_area_away() -> None:
    (sphere, *_), target = shapes(), grid((20, 58, 78), (3.0, 1.25, 1.0))
    whole, rest = sphere.contoured_volume_cm3(target), sphere.contoured_volume_cm3(target, (9,))
    assert whole - rest == pytest.approx(sphere.area_mm2((9 - 9.5 + 0.13) * 3) * 3 / 1000)


def test_a_nested_island_is_an_island_in_a_hole() -> None:
    target = grid((20, 60, 78), (3.0, 1.25, 1.0))
    island = next(shape for shape in shapes() if shape.name == "nested island")
    row = mask_from_polygons(island.polygons(target), target)[10, 30]
    assert np.count_nonzero(np.diff(row.astype(int)) == 1) == 3


def test_a_line_is_one_voxel_thick_from_rim_to_rim() -> None:
    target = grid((5, 6, 7), (3.0, 1.25, 1.0))
    assert [int(line_mask(target, axis).sum()) for axis in range(3)] == [5, 6, 7]


def test_there_are_49_different_orientations() -> None:
    axes = dict(orientations())
    assert len(axes) == 49
    assert len({tuple(np.round(a, 6).ravel()) for a in axes.values()}) == 49
    assert all(np.allclose(a.T @ a, np.eye(3)) for a in axes.values())
    np.testing.assert_array_equal(axes["SPL"], [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
