"""Affine, Grid, Volume, Box and resampling against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.crop import Box, crop_or_pad, put_back
from consilium.geometry.resample import resample, resample_probability
from consilium.geometry.volume import Grid, Volume
from consilium.types import FloatArray
from tests.geometry.grids import OBLIQUE_AXES_LPS, grid, orientations

ORIENTATIONS = list(orientations())


def linear_field(points_lps_mm: FloatArray) -> FloatArray:
    return 7.0 + points_lps_mm @ np.array([0.5, -0.25, 0.125])


def on(target: Grid) -> Volume:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape_zyx), indexing="ij"), axis=-1)
    return Volume(linear_field(target.affine.to_points(index)), target)


def test_there_are_48_orientations_and_an_oblique_one() -> None:
    assert len({axes.tobytes() for _, axes in ORIENTATIONS}) == 49


def test_dicom_attributes_place_voxels_by_the_standards_formula() -> None:
    affine = Affine.from_dicom(
        position_lps_mm=(-100.0, -50.0, 20.0),
        orientation=(1, 0, 0, 0, 1, 0),
        pixel_spacing_mm=(0.5, 0.25),
        slice_step_lps_mm=(0.0, 0.0, 3.0),
    )
    # PS3.3 C.7.6.2.1.1: column index times column spacing runs along the row direction.
    assert affine.to_points((2, 10, 40)).tolist() == [-90.0, -45.0, 26.0]
    assert affine.spacing_zyx_mm == (3.0, 0.5, 0.25)


@pytest.mark.parametrize(("name", "axes"), ORIENTATIONS, ids=[n for n, _ in ORIENTATIONS])
def test_indices_and_points_are_inverse(name: str, axes: FloatArray) -> None:
    affine = grid((4, 5, 6), (3.0, 0.7, 1.1), axes).affine
    index = np.array([[0, 0, 0], [3, 4, 5], [1.5, -2, 9]])
    assert np.allclose(affine.to_indices(affine.to_points(index)), index, atol=1e-12)


@pytest.mark.parametrize(("name", "axes"), ORIENTATIONS, ids=[n for n, _ in ORIENTATIONS])
def test_canonical_orientation_moves_no_voxel_and_can_be_undone(name: str, axes: FloatArray) -> None:
    volume = on(grid((4, 5, 6), (3.0, 0.7, 1.1), axes))
    canonical, reorientation = volume.to_canonical()
    assert np.allclose(canonical.array, on(canonical.grid).array, atol=1e-9)
    assert np.diag(canonical.grid.affine.matrix[:3, [2, 1, 0]]).min() > 0
    assert np.array_equal(reorientation.undo(canonical.array), volume.array)
    stacked = np.stack([volume.array, -volume.array])
    assert np.array_equal(reorientation.undo(reorientation.apply(stacked)), stacked)


@pytest.mark.parametrize(("name", "axes"), ORIENTATIONS, ids=[n for n, _ in ORIENTATIONS])
def test_linear_resampling_reproduces_a_linear_field_exactly(name: str, axes: FloatArray) -> None:
    source = on(grid((9, 10, 11), (3.0, 0.7, 1.1), axes))
    target = Grid((4, 5, 6), grid((4, 5, 6), (2.0, 0.9, 1.0)).affine)
    centre = source.grid.affine.to_points((4.0, 4.5, 5.0))
    shift = centre - target.affine.to_points((1.5, 2.0, 2.5))
    matrix = target.affine.matrix.copy()
    matrix[:3, 3] += shift
    target = Grid(target.shape_zyx, Affine(matrix))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape_zyx), indexing="ij"), axis=-1)
    position = source.grid.affine.to_indices(target.affine.to_points(index))
    inside = ((position >= 0) & (position <= np.array(source.grid.shape_zyx) - 1)).all(axis=-1)
    assert inside.sum() > 20
    result = resample(source, target).array
    assert np.abs(result - on(target).array)[inside].max() < 1e-9


def test_resampling_outside_gives_the_fill_value() -> None:
    source = on(grid((4, 4, 4), (1.0, 1.0, 1.0)))
    moved = source.grid.cropped(Box((-2, 0, 0), (4, 4, 4)))
    result = resample(source, moved, fill=-1000.0).array
    assert (result[:2] == -1000.0).all()
    assert np.allclose(result[2:], source.array)
    tilted = Grid((4, 4, 4), grid((4, 4, 4), (40.0, 40.0, 40.0), OBLIQUE_AXES_LPS).affine)
    far = resample(source, tilted, fill=-1000.0).array
    assert (far.reshape(-1)[1:] == -1000.0).all()


def test_nearest_resampling_keeps_masks_boolean(rng: np.random.Generator) -> None:
    mask = Volume(rng.random((6, 6, 6)) > 0.5, grid((6, 6, 6), (2.0, 1.0, 1.0)))
    finer = mask.grid.resampled((1.0, 0.5, 0.5))
    result = resample(mask, finer, interpolation="nearest")
    assert result.array.dtype == np.bool_
    assert np.array_equal(result.array, mask.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_resampled_grid_keeps_centre_and_extent() -> None:
    source = grid((10, 20, 30), (3.0, 1.0, 1.0), OBLIQUE_AXES_LPS)
    target = source.resampled((1.5, 2.0, 0.9))
    assert target.shape_zyx == (20, 10, 33)
    assert np.allclose(target.spacing_zyx_mm, (1.5, 2.0, 0.9))
    middle = source.affine.to_points((np.array(source.shape_zyx) - 1) / 2)
    assert np.allclose(target.affine.to_points((np.array(target.shape_zyx) - 1) / 2), middle)


def test_a_half_space_keeps_its_volume_through_probability_resampling() -> None:
    source = grid((20, 20, 20), (2.0, 2.0, 2.0))
    probability = np.zeros(source.shape_zyx, dtype=np.float32)
    probability[:10] = 1.0
    mask = resample_probability(Volume(probability, source), source.resampled((1.0, 1.0, 1.0)))
    assert mask.mean() == 0.5


def test_antialiasing_keeps_a_constant_and_flattens_a_checkerboard() -> None:
    source = grid((16, 16, 16), (1.0, 1.0, 1.0))
    z, y, x = np.indices(source.shape_zyx)
    board = ((z + y + x) % 2).astype(np.float32)
    coarse = source.resampled((4.0, 4.0, 4.0))
    assert np.ptp(resample(Volume(board, source), coarse, antialias=True).array) < 0.02
    constant = resample(Volume(np.full((16, 16, 16), 3.0), source), coarse, antialias=True).array
    assert np.allclose(constant, 3.0)


triples = st.tuples(*[st.integers(-4, 9)] * 3)


@settings(max_examples=60, deadline=None)
@given(start=triples, lengths=st.tuples(*[st.integers(1, 12)] * 3))
def test_crop_then_put_back_restores_what_the_box_held(
    start: tuple[int, int, int], lengths: tuple[int, int, int]
) -> None:
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    box = Box(start, tuple(s + n for s, n in zip(start, lengths, strict=True)))  # type: ignore[arg-type]
    part = crop_or_pad(array, box, fill=-1)
    assert part.shape == box.shape_zyx
    restored = put_back(part, box, (5, 6, 7), fill=-1)
    index = np.indices(array.shape)
    held = np.ones(array.shape, dtype=bool)
    for axis in range(3):
        held &= (index[axis] >= box.start_zyx[axis]) & (index[axis] < box.stop_zyx[axis])
    assert np.array_equal(restored, np.where(held, array, -1))


def test_crop_then_pad_restores_the_grid() -> None:
    volume = on(grid((6, 7, 8), (2.0, 1.0, 1.5), OBLIQUE_AXES_LPS))
    part = volume.cropped(Box((2, -1, 3), (5, 4, 12)))
    whole = part.cropped(Box((-2, 1, -3), (4, 8, 5)))
    assert whole.grid.is_same_as(volume.grid, 1e-9)


def test_box_around_a_mask_is_tight_and_none_when_empty() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    assert Box.around(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert Box.around(mask) == Box((1, 2, 3), (4, 3, 7))


@pytest.mark.parametrize(
    ("matrix", "finding"),
    [
        (np.eye(3), r"\(3, 3\)"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
        (np.diag([1.0, 1, 0, 1]), "volume"),
    ],
)
def test_an_affine_that_is_none_is_refused(matrix: FloatArray, finding: str) -> None:
    with pytest.raises(GeometryError, match=finding):
        Affine(matrix)


def test_a_volume_of_another_shape_than_its_grid_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"\(2, 2, 2\).*\(3, 3, 3\)"):
        Volume(np.zeros((2, 2, 2)), grid((3, 3, 3), (1.0, 1.0, 1.0)))


def test_json_round_trip_of_a_grid_is_exact() -> None:
    source = grid((3, 4, 5), (2.5, 0.7031250001, 0.1), OBLIQUE_AXES_LPS)
    assert Grid.from_json(source.to_json()) == source


def test_gantry_tilt_is_seen_as_shear_and_keeps_the_voxel_volume() -> None:
    affine = Affine.from_dicom(
        position_lps_mm=(0.0, 0.0, 0.0),
        orientation=(1, 0, 0, 0, 1, 0),
        pixel_spacing_mm=(1.0, 1.0),
        slice_step_lps_mm=(0.0, 0.5, 3.0),
    )
    assert affine.is_sheared
    assert affine.voxel_volume_mm3 == pytest.approx(3.0)
    assert affine.slice_normal_lps.tolist() == [0.0, 0.0, 1.0]
