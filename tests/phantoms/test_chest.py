"""Phantom chests: truths on paper, repeatable, nothing lost."""

import numpy as np
import pytest

from consilium.errors import ConfigurationError
from consilium.phantoms.chest import LARGEST_MM, SMALLEST_MM, ChestScanner, make_chest

SMALL = ChestScanner(shape_zyx=(72, 96, 120), spacing_zyx_mm=(2.0, 2.0, 2.0))


def test_a_nodule_fills_the_volume_on_paper() -> None:
    fine = ChestScanner(shape_zyx=(150, 170, 200), spacing_zyx_mm=(1.0, 1.0, 1.0))
    phantom = make_chest(np.random.default_rng(3), nodules=3, scanner=fine)
    assert len(phantom.nodules) == 3
    for number, nodule in enumerate(phantom.nodules, start=1):
        inside = np.argwhere(phantom.labels == number)
        assert len(inside) / 1000 == pytest.approx(nodule.volume_cm3, rel=0.1)
        centre = phantom.image.grid.affine.to_points(inside.mean(axis=0))
        assert np.allclose(centre, nodule.centre_lps_mm, atol=0.3)


def test_the_same_seed_gives_the_same_chest() -> None:
    one, two = (make_chest(np.random.default_rng(5), scanner=SMALL) for _ in range(2))
    assert np.array_equal(one.image.array, two.image.array)
    assert np.array_equal(one.labels, two.labels)


def test_nodules_stay_apart_and_within_their_sizes(rng: np.random.Generator) -> None:
    phantom = make_chest(rng, nodules=8, scanner=SMALL)
    assert phantom.nodules
    for k, a in enumerate(phantom.nodules):
        assert SMALLEST_MM <= a.diameter_mm <= LARGEST_MM + 1e-9
        for b in phantom.nodules[:k]:
            gap = np.linalg.norm(np.subtract(a.centre_lps_mm, b.centre_lps_mm))
            assert gap > (a.diameter_mm + b.diameter_mm) / 2


def test_a_chest_without_nodules_is_legal(rng: np.random.Generator) -> None:
    phantom = make_chest(rng, nodules=0, scanner=SMALL)
    assert phantom.nodules == ()
    assert not phantom.labels.any()
    assert phantom.image.array.min() < -900
    assert phantom.image.array.max() > 300


def test_too_many_nodules_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ConfigurationError, match="0 to 50"):
        make_chest(rng, nodules=51)
