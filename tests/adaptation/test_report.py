"""The figures and flags of a structure, and the verb as a person would type it."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from consilium.adaptation.deformation import Deformation
from consilium.adaptation.images import prepare, registration_grid
from consilium.adaptation.register import Registration
from consilium.adaptation.report import ChangeMeter, DayMasks, find_flags
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.cli.adapt import adapt
from consilium.errors import ConfigurationError
from consilium.geometry.contours import mask_from_polygons
from consilium.geometry.volume import Volume
from consilium.importers.rtstruct import read_rtstruct
from consilium.metrics.overlap import dice
from consilium.phantoms.dicom import SeriesIdentity, write_patient, write_series
from tests.adaptation.pairs import pair, planning_masks

PLAIN = {
    "structure": "Bladder",
    "planning_volume_cm3": 100.0,
    "volume_cm3": 110.0,
    "shift_lps_mm": (1.0, 2.0, 2.0),
    "jacobian_range": (0.7, 1.5),
    "folded_voxels": 0,
    "grey_difference": 0.2,
    "gas_cm3": (0.0, 0.2),
    "agreement": 1.0,
}


def test_an_ordinary_change_gives_no_flag() -> None:
    assert find_flags(PLAIN, is_cut=False) == []


@pytest.mark.parametrize(
    ("change", "cut", "code"),
    [
        ({"structure": "PTV_60"}, False, "target"),
        ({}, True, "cut"),
        ({"volume_cm3": 190.0}, False, "volume"),
        ({"volume_cm3": 0.0}, False, "lost"),
        ({"shift_lps_mm": (0.0, 12.0, -10.0)}, False, "shift"),
        ({"folded_voxels": 2}, False, "folded"),
        ({"jacobian_range": (0.1, 1.0)}, False, "strain"),
        ({"grey_difference": 0.9}, False, "unlike"),
        ({"gas_cm3": (0.0, 9.0)}, False, "gas"),
        ({"agreement": 0.3}, False, "disagree"),
    ],
)
def test_each_reason_to_look_is_named(change: dict[str, object], cut: bool, code: str) -> None:
    flags = find_flags(PLAIN | change, is_cut=cut)
    assert [flag.code for flag in flags] == [code]
    assert flags[0].reason.endswith((".", "?"))


def test_the_figures_of_a_known_shift() -> None:
    patient, _ = pair(0)
    grid = patient.image.grid
    seen = prepare(patient.image, registration_grid(patient.image))
    meter = ChangeMeter(Registration(Deformation.identity(seen.grid), seen, seen), grid)
    before = planning_masks(patient)["Bladder"]
    after = np.roll(before, 2, axis=1)
    volume = float(before.sum()) * grid.voxel_volume_cm3
    masks = DayMasks(
        structure="Bladder", final=after, propagated=after, rigid=before,
        planning_volume_cm3=volume, is_cut=False, source="propagated",
    )  # fmt: skip
    change = meter.measure(masks)
    assert change.shift_lps_mm == pytest.approx((0, 2 * grid.spacing_zyx_mm[1], 0), abs=1e-6)
    assert change.volume_cm3 == pytest.approx(volume)
    assert change.jacobian_range == pytest.approx((1, 1))
    assert 2 < change.surface_distance_mm < 2 * grid.spacing_zyx_mm[1]
    assert change.grey_difference < 1e-5
    json.dumps(change.to_json(), allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("adapt")
    patient, repeat = pair(10)
    identity = SeriesIdentity(label="West-1")
    write_patient(where / "planning", patient.image, patient.contours, identity)
    write_series(where / "repeat", repeat.image, SeriesIdentity(label="West-1", scan="repeat"))
    write_series(where / "stranger", repeat.image, SeriesIdentity(label="West-2"))
    return where


def test_the_verb_writes_contours_field_and_report(folder: Path) -> None:
    planning, out = folder / "planning", folder / "out"
    adapt(planning / "ct", planning / "rtstruct.dcm", folder / "repeat", out)
    patient, repeat = pair(10)
    written = pydicom.dcmread(out / "contours.dcm")
    assert written.ApprovalStatus == "UNAPPROVED"
    first = pydicom.dcmread(next((folder / "repeat").glob("*.dcm")))
    assert written.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert written.PatientID == first.PatientID
    for roi in read_rtstruct(out / "contours.dcm").rois:
        mask = mask_from_polygons(roi.polygons_lps_mm, repeat.image.grid)
        assert dice(repeat.masks[roi.name], mask) > 0.8, roi.name
    record = json.loads((out / "adaptation.json").read_text())
    assert {entry["structure"] for entry in record["structures"]} == set(patient.contours)
    assert record["overall"]["folded_voxels"] == 0
    assert (out / "deformation.nii.gz").stat().st_size > 1000
    page = (out / "adaptation.html").read_text()
    assert page.count("data:image/png") == len(patient.contours) + 1
    assert "Check this" in page


def test_another_patient_is_refused(folder: Path) -> None:
    planning = folder / "planning"
    with pytest.raises(ConfigurationError, match="patient ids differ"):
        adapt(planning / "ct", planning / "rtstruct.dcm", folder / "stranger", folder / "no")
    assert not (folder / "no").exists()


def test_a_folder_of_several_structure_sets_is_refused(folder: Path, tmp_path: Path) -> None:
    planning = folder / "planning"
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes((planning / "rtstruct.dcm").read_bytes())
    with pytest.raises(ConfigurationError, match=r"holds 2\. Give the file"):
        adapt(planning / "ct", tmp_path, folder / "repeat", folder / "no")
    assert not (folder / "no").exists()


def test_nifti_in_gives_nifti_out(tmp_path: Path) -> None:
    patient, _ = pair(0)
    write_nifti(tmp_path / "planning.nii.gz", patient.image)
    (tmp_path / "masks").mkdir()
    mask = planning_masks(patient)["Bladder"]
    write_nifti(tmp_path / "masks" / "Bladder.nii.gz", Volume(mask, patient.image.grid))
    adapt(tmp_path / "planning.nii.gz", tmp_path / "masks", tmp_path / "planning.nii.gz", tmp_path / "out")
    found = read_nifti(next((tmp_path / "out" / "contours").glob("*.nii.gz")))
    assert dice(mask, found.array > 0) > 0.99
    with pytest.raises(ConfigurationError, match="folder of NIfTI masks"):
        adapt(
            tmp_path / "planning.nii.gz", tmp_path / "planning.nii.gz", tmp_path / "planning.nii.gz", tmp_path
        )
