"""Area and volume of a block of eight voxels follow from geometry."""

import numpy as np
import pytest

from consilium.geometry.marching_cubes import (
    CORNERS,
    compute_block_areas,
    compute_block_volumes,
    neighbour_codes,
)
from tests.metrics.shapes import ball, box

ANISOTROPIC = (3.0, 0.7, 1.1)


def code_of(*corners: tuple[int, int, int]) -> int:
    return sum(1 << CORNERS.index(corner) for corner in corners)


def test_empty_and_full_blocks_have_no_surface() -> None:
    areas = compute_block_areas(ANISOTROPIC)
    assert areas[0] == 0
    assert areas[255] == 0
    assert (areas[1:255] > 0).all()


def test_a_half_full_block_has_the_area_of_its_face() -> None:
    areas = compute_block_areas(ANISOTROPIC)
    dz, dy, dx = ANISOTROPIC
    for axis, expected in ((0, dy * dx), (1, dz * dx), (2, dz * dy)):
        half = code_of(*(c for c in CORNERS if c[axis] == 0))
        assert areas[half] == pytest.approx(expected)


def test_a_single_corner_cuts_off_a_triangle() -> None:
    dz, dy, dx = ANISOTROPIC
    a, b, c = np.hypot(dz, dy) / 2, np.hypot(dy, dx) / 2, np.hypot(dz, dx) / 2
    s = (a + b + c) / 2
    heron = np.sqrt(s * (s - a) * (s - b) * (s - c))
    areas = compute_block_areas(ANISOTROPIC)
    for corner in CORNERS:
        assert areas[code_of(corner)] == pytest.approx(heron)
        assert areas[255 ^ code_of(corner)] == pytest.approx(heron)


def test_inside_and_outside_may_be_swapped() -> None:
    areas = compute_block_areas(ANISOTROPIC)
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-14)


def test_areas_do_not_depend_on_how_the_block_is_turned() -> None:
    areas = compute_block_areas((1.0, 1.0, 1.0))
    for code in range(256):
        corners = [c for bit, c in enumerate(CORNERS) if code >> bit & 1]
        turned = code_of(*((y, 1 - z, x) for z, y, x in corners))
        mirrored = code_of(*((x, y, z) for z, y, x in corners))
        assert areas[turned] == pytest.approx(areas[code])
        assert areas[mirrored] == pytest.approx(areas[code])


def test_area_of_a_cube_is_faces_edges_and_corners() -> None:
    n = 6
    mask = box((n + 2,) * 3, (1, 1, 1), (n + 1,) * 3)
    area = compute_block_areas((1.0, 1.0, 1.0))[neighbour_codes(mask)].sum()
    edge, corner = np.sqrt(0.5), np.sqrt(3) / 8
    assert area == pytest.approx(6 * (n - 1) ** 2 + 12 * (n - 1) * edge + 8 * corner)


def test_area_of_a_ball_is_within_a_tenth_of_the_sphere() -> None:
    spacing, radius = (1.0, 1.0, 1.0), 20.0
    mask = ball((45, 45, 45), (22, 22, 22), radius, spacing)
    area = compute_block_areas(spacing)[neighbour_codes(mask)].sum()
    assert 1.0 < area / (4 * np.pi * radius**2) < 1.1


def test_volume_of_a_cube_lacks_its_bevelled_edges_and_corners() -> None:
    n = 6
    mask = box((n + 2,) * 3, (1, 1, 1), (n + 1,) * 3)
    volume = compute_block_volumes()[neighbour_codes(mask)].sum()
    # Each edge loses a prism of cross section 1/8; each corner keeps a tetrahedron of 1/48 of its 1/8 cube.
    assert volume == pytest.approx(n**3 - 12 * (n - 1) / 8 - 8 * (1 / 8 - 1 / 48))


def test_a_mask_and_its_complement_fill_the_block_unless_both_are_cut_apart() -> None:
    volumes = compute_block_volumes()
    codes = np.arange(256)
    halves = np.bitwise_count(codes.astype(np.uint8)) == 4
    sums = volumes + volumes[::-1]
    np.testing.assert_allclose(sums[~halves], 1, atol=1e-12)
    assert (sums[halves] <= 1 + 1e-12).all()
    np.testing.assert_allclose(sums[code_of(*CORNERS[:4])], 1, atol=1e-12)
    assert ((volumes[1:255] > 0) & (volumes[1:255] < 1)).all()


def test_volumes_do_not_depend_on_how_the_block_is_turned() -> None:
    volumes = compute_block_volumes()
    for code in range(256):
        corners = [c for bit, c in enumerate(CORNERS) if code >> bit & 1]
        assert volumes[code_of(*((y, 1 - z, x) for z, y, x in corners))] == pytest.approx(volumes[code])


def test_volume_of_a_ball_is_that_of_the_sphere() -> None:
    spacing, radius = (1.0, 0.8, 0.8), 20.0
    mask = ball((45, 55, 55), (22, 27, 27), radius, spacing)
    volume = compute_block_volumes()[neighbour_codes(mask)].sum() * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
