"""Phantom patients: volumes known on paper, repeatable, and different from hospital to hospital."""

import numpy as np
import pytest

from consilium.errors import GeometryError
from consilium.geometry.contours import mask_from_polygons, polygon_area_mm2
from consilium.phantoms.organs import Organ
from consilium.phantoms.pelvis import HOSPITALS, STRUCTURES, Hospital, build_cohort, without_structure


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda h: h.name)
def test_contours_enclose_the_volume_on_paper(hospital: Hospital) -> None:
    (patient,) = build_cohort(hospital, 1, seed=7)
    assert set(patient.contours) == set(hospital.structures)
    sz, _, _ = hospital.spacing_zyx_mm
    for structure, polygons in patient.contours.items():
        on_paper = patient.contoured_volume_cm3(structure)
        assert sum(map(polygon_area_mm2, polygons)) * sz / 1000 == pytest.approx(on_paper, rel=2e-4)
        grid = patient.image.grid
        voxels = np.count_nonzero(mask_from_polygons(polygons, grid)) * grid.voxel_volume_cm3
        assert voxels == pytest.approx(on_paper, rel=0.04)
        assert patient.organs[structure].volume_cm3 == pytest.approx(on_paper, rel=0.05)


def test_an_ellipsoid_has_the_volume_of_an_ellipsoid() -> None:
    organ = Organ(structure="Ball", centre_lps_mm=(0, 0, 0), radii_lps_mm=(10, 10, 10), hu=0)
    assert organ.volume_cm3 == pytest.approx(4 / 3 * np.pi)
    levels = np.linspace(-10, 10, 2001)
    area = sum(organ.area_mm2(float(z)) for z in levels) * (levels[1] - levels[0])
    assert area / 1000 == pytest.approx(organ.volume_cm3, rel=1e-5)


def test_a_rippled_outline_has_the_area_on_paper() -> None:
    organ = Organ(
        structure="Wavy",
        centre_lps_mm=(3, 4, 5),
        radii_lps_mm=(30, 20, 10),
        hu=0,
        waves=((2, 0.1, 0.3), (3, 0.2, 1.0)),
    )
    assert polygon_area_mm2(organ.polygon(9.0)) == pytest.approx(organ.area_mm2(9.0), rel=2e-3)
    assert polygon_area_mm2(organ.polygon(9.0, points=5000)) == pytest.approx(organ.area_mm2(9.0), rel=1e-5)


def test_an_organ_without_size_is_refused() -> None:
    with pytest.raises(GeometryError, match="radii must be positive"):
        Organ(structure="None", centre_lps_mm=(0, 0, 0), radii_lps_mm=(10, 0, 10), hu=0)


def test_a_seed_and_number_give_the_same_patient_whatever_the_cohort() -> None:
    three, one = build_cohort(HOSPITALS[0], 3, seed=1), build_cohort(HOSPITALS[0], 1, seed=1)
    np.testing.assert_array_equal(three[0].image.array, one[0].image.array)
    assert not np.array_equal(three[0].image.array, three[1].image.array)


def test_hospitals_differ_in_grid_noise_and_structures() -> None:
    patients = [build_cohort(hospital, 1, seed=3)[0] for hospital in HOSPITALS]
    assert len({p.image.grid.spacing_zyx_mm for p in patients}) == len(HOSPITALS)
    air = [float(p.image.array[:, :3, :3].std()) for p in patients]
    assert max(air) > 2 * min(air)
    assert len({tuple(sorted(p.contours)) for p in patients}) > 1
    assert all(set(p.organs) == set(STRUCTURES) for p in patients)


def test_a_structure_can_be_left_uncontoured() -> None:
    (patient,) = build_cohort(HOSPITALS[0], 1, seed=3)
    assert set(patient.contours) - set(without_structure(patient, "Prostate").contours) == {"Prostate"}
