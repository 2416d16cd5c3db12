"""The repeat day: volumes on paper, no folds, the same tissue at the same place."""

import numpy as np
import pytest

from consilium.errors import GeometryError
from consilium.phantoms.pelvis import HOSPITALS, build_cohort
from consilium.phantoms.repeat import Filling, build_repeat, choose_change

WEST = HOSPITALS[3]


@pytest.mark.parametrize("amount_mm", [5.0, 15.0])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_change_has_no_fold_and_the_size_that_was_asked_for(amount_mm: float, seed: int) -> None:
    patient = build_cohort(WEST, 1, seed=seed)[0]
    change = choose_change(patient, amount_mm, rng=np.random.default_rng(seed))
    grid = patient.image.grid
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape_zyx), indexing="ij"), -1)
    points = grid.affine.to_points(index)
    planning = change.to_planning(points)
    moved = np.linalg.norm(planning - (points @ change.setup[:3, :3].T + change.setup[:3, 3]), axis=-1)
    assert 0.7 * amount_mm < moved.max() < 1.8 * amount_mm
    steps = [np.stack(np.gradient(planning[..., k], *grid.spacing_zyx_mm)[::-1]) for k in range(3)]
    jacobian = np.linalg.det(np.moveaxis(np.stack(steps), (0, 1), (-2, -1)))
    assert jacobian.min() > 0.05


def test_a_bladder_has_the_volume_on_paper() -> None:
    patient = build_cohort(HOSPITALS[0], 1, seed=5)[0]
    change = choose_change(patient, 12, rng=np.random.default_rng(1))
    bladder = change.fillings[0]
    # Without posture and the rectum the bladder alone is left: affine inside.
    alone = type(change)(setup=change.setup, fillings=(bladder,), gas=None)
    repeat = build_repeat(patient, alone, rng=np.random.default_rng(2))
    volume = np.count_nonzero(repeat.masks["Bladder"]) * repeat.image.grid.voxel_volume_cm3
    on_paper = patient.organs["Bladder"].volume_cm3 * float(np.prod(bladder.factors))
    assert volume == pytest.approx(on_paper, rel=0.03)


def test_the_image_shows_the_organs_where_the_masks_are() -> None:
    patient = build_cohort(HOSPITALS[0], 1, seed=6)[0]
    rng = np.random.default_rng(3)
    repeat = build_repeat(patient, choose_change(patient, 10, rng=rng), rng=rng)
    for name in ("Bladder", "FemoralHead_L"):
        assert repeat.image.array[repeat.masks[name]].mean() == pytest.approx(patient.organs[name].hu, abs=30)


def test_what_cannot_be_is_refused() -> None:
    patient = build_cohort(WEST, 1, seed=5)[0]
    with pytest.raises(GeometryError, match="must be in"):
        choose_change(patient, 40, rng=np.random.default_rng(0))
    with pytest.raises(GeometryError, match="must be positive"):
        Filling(organ=patient.organs["Bladder"], factors=(1, 0, 1), centre_lps_mm=(0, 0, 0))
