"""The registration finds deformations that are known on paper."""

import numpy as np
import pytest

from consilium.adaptation.deformable import register_deformable
from consilium.adaptation.images import PreparedImage, find_body_mask, prepare, registration_grid
from consilium.adaptation.register import register
from consilium.adaptation.rigid import register_rigid
from consilium.errors import DataError
from consilium.geometry.affine import Affine
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid, Volume
from consilium.phantoms.dicom import moved
from tests.adaptation.pairs import field_errors_mm, pair, planning_masks, propagated_dice, registered
from tests.geometry.grids import rotation


def test_the_same_image_gives_the_planning_contours() -> None:
    patient, _ = pair(0)
    found = register(patient.image, patient.image)
    assert np.abs(found.deformation.displacement_lps_mm).max() < 0.2
    np.testing.assert_allclose(found.deformation.rigid, np.eye(4), atol=1e-3)


def test_a_changed_pelvis_is_found_again() -> None:
    patient, repeat = pair(10)
    found = registered(10)
    assert found.deformation.jacobian.min() > 0
    scores = propagated_dice(patient, repeat, found)
    assert scores["Bladder"] > 0.88
    assert min(scores.values()) > 0.8
    start = _rigid_only_dice(patient, repeat, found)
    assert np.mean(list(scores.values())) > np.mean(list(start.values())) + 0.02
    assert np.median(field_errors_mm(repeat, found)) < 2


def test_where_the_planning_ct_ends_nothing_is_torn() -> None:
    """A planning CT of the lower half only: there the field is as with the whole, beyond it calm."""
    patient, repeat = pair(10)
    half = patient.image.grid.shape_zyx[0] // 2
    lower = Volume(patient.image.array[:half], patient.image.grid.cropped(_slices(patient.image.grid, half)))
    found = register(lower, repeat.image)
    points = found.deformation.grid.affine.to_points(np.argwhere(found.repeat.body & found.planning.seen))
    errors = np.linalg.norm(found.deformation.to_planning(points) - repeat.change.to_planning(points), axis=1)
    assert np.median(errors) < 2.5
    unseen = found.deformation.displacement_lps_mm[:, ~found.planning.seen & found.repeat.body]
    assert unseen.size
    assert np.linalg.norm(unseen, axis=0).max() < 15
    assert found.deformation.jacobian.min() > 0


def _slices(grid: Grid, stop: int) -> Box:
    return Box((0, 0, 0), (stop, *grid.shape_zyx[1:]))


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 9])
def test_a_few_slices_are_registered_too(slices: int) -> None:
    """A disc that moved by 6 mm: images that are shorter than the filters of the library need."""
    grid = Grid((slices, 48, 48), Affine.from_spacing((3.0, 3.0, 3.0)))
    planning, repeat = (_disc(grid, middle) for middle in (24.0, 22.0))
    displacement = register_deformable(planning, repeat)
    assert displacement.shape == (3, *grid.shape_zyx)
    edge = displacement[:, slices // 2, 24, 22 - 9]
    np.testing.assert_allclose(edge, (6, 0, 0), atol=1.5)


def _disc(grid: Grid, middle: float) -> PreparedImage:
    _, y, x = np.indices(grid.shape_zyx)
    distance = np.hypot(y - 24, x - middle)
    everywhere = np.ones(grid.shape_zyx, dtype=np.bool_)
    grey = np.clip(2 * (10 - distance), -2, 2).astype(np.float32)
    return PreparedImage(grey, everywhere, everywhere, ~everywhere, grid)


def test_what_the_progress_raises_ends_the_registration() -> None:
    patient, repeat = pair(10)

    def interrupted(task: str, done: int, total: int) -> None:
        if task == "deformable registration":
            assert 0 <= done <= total
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register(patient.image, repeat.image, progress=interrupted)


def _rigid_only_dice(patient, repeat, found):  # type: ignore[no-untyped-def]
    from consilium.adaptation.propagate import StructureShape
    from consilium.metrics.overlap import dice

    rigid = found.deformation.without_displacement()
    return {
        name: dice(
            repeat.masks[name], StructureShape.of(mask, patient.image.grid).carried(rigid, repeat.image.grid)
        )
        for name, mask in planning_masks(patient).items()
    }


def test_another_frame_orientation_and_height_are_found_rigidly() -> None:
    patient, repeat = pair(0)
    away = rotation((1, 1, 0), 4)
    image, _ = moved(repeat.image, {}, away)
    shifted = np.array(image.grid.affine.matrix)
    shifted[:3, 3] += (25.0, -40.0, 180.0)
    there = Volume(image.array[::-1, :, ::-1], _flipped(Grid(image.grid.shape_zyx, Affine(shifted))))
    own, fixed = registration_grid(patient.image), registration_grid(there)
    rigid = register_rigid(prepare(patient.image, own), prepare(there, fixed))
    index = np.argwhere(find_body_mask(repeat.image.array, repeat.image.grid))[::50]
    points = repeat.image.grid.affine.to_points(index)
    seen = points @ away.T + (25.0, -40.0, 180.0)
    back = seen @ rigid[:3, :3].T + rigid[:3, 3]
    assert np.median(np.linalg.norm(back - repeat.change.to_planning(points), axis=1)) < 1.0


def _flipped(grid: Grid) -> Grid:
    """The grid of ``array[::-1, :, ::-1]``."""
    nz, _, nx = grid.shape_zyx
    return Grid(grid.shape_zyx, grid.affine.shifted((nz - 1, 0, nx - 1)).scaled((-1, 1, -1)))


def test_gas_is_filled_with_what_is_around_it() -> None:
    patient, _ = pair(0)
    grid = registration_grid(patient.image)
    seen = prepare(patient.image, grid)
    gas = patient.layers[[layer.structure for layer in patient.layers].index("RectumGas")]
    at = np.rint(grid.affine.to_indices(gas.centre_lps_mm)).astype(int)
    assert seen.gas[tuple(at)]
    assert -0.3 < seen.grey[tuple(at)] < 0.7
    assert 0.3 < np.count_nonzero(seen.gas) * grid.voxel_volume_cm3 / gas.volume_cm3 < 6


def test_the_couch_is_no_body() -> None:
    patient, _ = pair(0)
    hu = np.array(patient.image.array)
    hu[:, -6:-5, :] = 200
    body = find_body_mask(hu, patient.image.grid)
    assert not body[:, -6:, :].any()
    assert body.mean() > 0.2


def test_images_that_share_nothing_are_refused() -> None:
    patient, _ = pair(0)
    air = Volume(np.full_like(patient.image.array, -1000), patient.image.grid)
    with pytest.raises(DataError, match="must show a body"):
        register(patient.image, air)
