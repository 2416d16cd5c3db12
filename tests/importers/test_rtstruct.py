"""RTSTRUCT as other systems wrote them, and files that are damaged or hostile."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from consilium.cases.case import State
from consilium.cases.draft import AnnotationDraft
from consilium.errors import RefusedInput
from consilium.geometry.contours import place_polygons
from consilium.geometry.volume import Grid
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.rtstruct import PlacedStructures, annotations_from_rtstruct, read_rtstruct
from consilium.phantoms.dicom import SeriesIdentity, moved, write_patient
from consilium.phantoms.pelvis import HOSPITALS, build_cohort
from tests.data import shared_data, unpacked
from tests.geometry.grids import rotation


def place(folder: Path, rtstruct: Path) -> tuple[PlacedStructures, Grid]:
    (series,) = scan_dicom(sorted(p for p in folder.rglob("*") if p.is_file())).series
    grid = series.plan().grid
    placed = annotations_from_rtstruct(
        read_rtstruct(rtstruct),
        grid,
        sop_uids=[s.sop_instance_uid for s in series.slices],
        frame_of_reference_uid=series.frame_of_reference_uid,
    )
    return placed, grid


def voxels(annotation: AnnotationDraft) -> int:
    assert annotation.mask is not None
    return int(np.count_nonzero(annotation.mask()))


@pytest.mark.parametrize("patient", range(1, 13))
def test_every_sarcoma_is_placed_by_coordinates_although_its_references_are_missing(patient: int) -> None:
    folder = unpacked(f"sts/STS_{patient:03d}")
    path = next((folder / "rtstruct").iterdir())
    placed, grid = place(folder / "ct", path)
    (annotation,) = placed.annotations
    assert annotation.structure == "GTV_Mass_CT"
    assert "missing-references" in {finding.code for finding in placed.findings}
    (roi,) = read_rtstruct(path).rois
    on_paper = place_polygons(roi.polygons_lps_mm, grid).volume_mm3 / 1000
    volume = voxels(annotation) * grid.voxel_volume_cm3
    assert volume == pytest.approx(on_paper, rel=0.01)
    assert 15 < volume < 2500


def test_a_plan_of_ten_rois_on_one_slice_gives_unknown_where_nothing_lies_on_it() -> None:
    """One of the ten is the body's outline, which is no structure to learn."""
    folder = shared_data("dicom/dicompyler/example_data")
    placed, _ = place(folder, folder / "rtss.dcm")
    states = {a.structure: a.state for a in placed.annotations}
    assert len(states) == 9
    assert states["Areola"] is State.UNKNOWN
    assert states["Heart"] is State.UNKNOWN
    assert "BODY" not in states
    assert {"no-contours", "outside-image", "no-structure"} <= {finding.code for finding in placed.findings}


@pytest.mark.parametrize("name", ["invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"])
def test_references_to_images_that_are_not_there_are_a_finding(name: str) -> None:
    folder = shared_data("dicom/rt-utils/mock_data")
    placed, _ = place(folder, folder / name)
    assert [a.state for a in placed.annotations] == [State.CONTOURED] * 4
    assert {finding.code for finding in placed.findings} == {"missing-references", "outside-image"}


def test_a_structure_set_of_another_frame_of_reference_is_refused() -> None:
    folder = shared_data("dicom/rt-utils/mock_data")
    with pytest.raises(RefusedInput, match=r"another one\. Register the images"):
        place(folder, folder / "rt.dcm")


def test_points_and_isocentres_are_no_structures_with_voxels() -> None:
    path = shared_data("dicom/pydicom_test_files/test_files/rtstruct.dcm")
    structures = read_rtstruct(path)
    assert [len(roi.polygons_lps_mm) for roi in structures.rois] == [3, 0, 0]
    assert [roi.other_types for roi in structures.rois] == [0, 1, 1]


def test_an_oblique_patient_has_the_volumes_on_paper(tmp_path: Path) -> None:
    (patient,) = build_cohort(HOSPITALS[0], 1, seed=5)
    image, contours = moved(patient.image, patient.contours, rotation((1, 2, 3), 25))
    write_patient(tmp_path, image, contours, SeriesIdentity(label="oblique"))
    placed, grid = place(tmp_path / "ct", tmp_path / "rtstruct.dcm")
    codes = {finding.code for finding in placed.findings}
    assert codes == set()
    for annotation in placed.annotations:
        on_paper = patient.contoured_volume_cm3(annotation.structure)
        assert voxels(annotation) * grid.voxel_volume_cm3 == pytest.approx(on_paper, rel=0.03)


def test_a_deflated_file_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    head = Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    head.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    head.save_as(path, enforce_file_format=True)
    meta_end = path.stat().st_size - 2
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(bytes(2**24)) for _ in range(20)) + deflater.flush()
    path.write_bytes(path.read_bytes()[:meta_end] + bomb)
    with pytest.raises(RefusedInput):
        read_rtstruct(path)


def test_sequences_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    start = (b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\x08\x00\x40\x11\xff\xff\xff\xff")
    body = b"".join(start[::-1]) * 3000
    (patient,) = build_cohort(HOSPITALS[3], 1, seed=5)
    folder = write_patient(tmp_path, patient.image, patient.contours, SeriesIdentity(label="deep"))
    path = folder / "rtstruct.dcm"
    path.write_bytes(path.read_bytes() + body)
    with pytest.raises(RefusedInput):
        read_rtstruct(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_or_loses_no_structure_silently(tmp_path: Path, share: float) -> None:
    (patient,) = build_cohort(HOSPITALS[3], 1, seed=5)
    write_patient(tmp_path, patient.image, patient.contours, SeriesIdentity(label="cut"))
    path = tmp_path / "rtstruct.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RefusedInput):
        read_rtstruct(path)
