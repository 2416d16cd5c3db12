"""RTSTRUCT out and in: exact through an independent reader, in every orientation, within the standard."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.sr.codedict import codes

from consilium.cases.case import State
from consilium.errors import DataError, RefusedInput
from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.rtstruct import Algorithm, Roi, export_rtstruct, rois_from_masks
from consilium.geometry.volume import Grid
from consilium.importers.rtstruct import annotations_from_rtstruct, parse_decimals, read_rtstruct
from consilium.types import FloatArray, Mask
from tests.geometry.grids import grid, orientations

ORIENTATIONS = list(orientations())
ALGORITHM = Algorithm(name="consilium unet3d", model_sha256="ab" * 32)
FRAME = "1.2.840.99.3"


def reference_for(target: Grid, *, leave_out: tuple[int, ...] = ()) -> SeriesReference:
    positions = target.affine.to_points([[z, 0, 0] for z in range(target.shape_zyx[0])])
    record = {
        "kind": "dicom",
        "patient": {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientSex": "F"},
        "study": {"StudyInstanceUID": "1.2.840.99.1", "StudyDate": "20260101", "StudyID": "7"},
        "series": {
            "SeriesInstanceUID": "1.2.840.99.2",
            "FrameOfReferenceUID": FRAME,
            "Modality": "CT",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        },
        "slices": [
            {"sop_instance_uid": f"1.2.840.99.2.{z}", "position_lps_mm": positions[z].tolist()}
            for z in range(target.shape_zyx[0])
            if z not in leave_out
        ],
    }
    return SeriesReference.from_record(record)


def blobs(rng: np.random.Generator, shape: tuple[int, int, int]) -> Mask:
    """Two touching blobs, a ring with an island in it, and single voxels."""
    z, y, x = np.indices(shape)
    mask = ((z - 4) / 3) ** 2 + ((y - 8) / 6) ** 2 + ((x - 8) / 5) ** 2 < 1
    ring = np.hypot(y - 16, x - 22)
    mask |= ((ring < 8) & (ring > 5) | (ring < 2)) & (z > 2)
    return np.asarray(mask | (rng.random(shape) > 0.995))


def independent_mask(path: Path, target: Grid, number: int) -> Mask:
    """Point in polygon at voxel centres, exclusive or per slice: pydicom and matplotlib, none of our code."""
    dataset = pydicom.dcmread(path)
    contour = next(c for c in dataset.ROIContourSequence if c.ReferencedROINumber == number)
    mask = np.zeros(target.shape_zyx, dtype=bool)
    inverse = np.linalg.inv(target.affine.matrix)
    y, x = np.indices(target.shape_zyx[1:])
    centres = np.stack([y.ravel(), x.ravel()], axis=1)
    for item in contour.get("ContourSequence", []):
        points = np.array(item.ContourData, dtype=float).reshape(-1, 3)
        index = (np.c_[points, np.ones(len(points))] @ inverse.T)[:, :3]
        plane = round(float(index[:, 0].mean()))
        assert np.abs(index[:, 0] - plane).max() < 1e-3
        inside = Polygon(index[:, 1:]).contains_points(centres).reshape(target.shape_zyx[1:])
        mask[plane] ^= inside
    return mask


@pytest.mark.parametrize(("name", "axes"), ORIENTATIONS, ids=[n for n, _ in ORIENTATIONS])
def test_every_reader_gets_the_mask_back_in_every_orientation(
    tmp_path: Path, rng: np.random.Generator, name: str, axes: FloatArray
) -> None:
    target = grid((9, 26, 34), (3.0, 0.9765625, 1.171875), axes)
    mask = blobs(rng, target.shape_zyx)
    path = tmp_path / "rtstruct.dcm"
    rois = rois_from_masks([("Blobs", mask)], target)
    export_rtstruct(path, rois, target, reference_for(target), algorithm=ALGORITHM)
    assert np.array_equal(independent_mask(path, target, 1), mask)
    placed = annotations_from_rtstruct(
        read_rtstruct(path),
        target,
        sop_uids=[uid for uid, _ in reference_for(target).slices],
        frame_of_reference_uid=FRAME,
    )
    assert placed.findings == ()
    draw = placed.annotations[0].mask
    assert draw is not None
    assert np.array_equal(draw(), mask)


def export_one(tmp_path: Path, name: str = "Bladder") -> pydicom.Dataset:
    target = grid((9, 26, 34), (3.0, 1.0, 1.0))
    mask = blobs(np.random.default_rng(1), target.shape_zyx)
    path = tmp_path / "rtstruct.dcm"
    rois = rois_from_masks([(name, mask)], target)
    export_rtstruct(path, rois, target, reference_for(target), algorithm=ALGORITHM)
    return pydicom.dcmread(path)


def test_no_string_is_longer_than_the_standard_allows_and_no_contour_has_under_three_points(
    tmp_path: Path,
) -> None:
    dataset = export_one(tmp_path, name="n" * 64)
    limits = {"SH": 16, "LO": 64, "ST": 1024, "DS": 16, "CS": 16, "UI": 64, "IS": 12, "PN": 64}
    seen = set()

    def look(element_of: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR in limits:
            seen.add(element.VR)
            values = element.value if element.VM > 1 else [element.value]
            for value in values or []:
                text = getattr(value, "original_string", None) or str(value)
                assert len(text) <= limits[element.VR], (element.keyword, text)

    dataset.walk(look)
    assert set(limits) - {"PN"} <= seen
    for contour in dataset.ROIContourSequence:
        for item in contour.ContourSequence:
            assert item.NumberOfContourPoints >= 3
            assert len(item.ContourData) == 3 * item.NumberOfContourPoints


def test_an_export_is_unapproved_automatic_and_names_its_model(tmp_path: Path) -> None:
    dataset = export_one(tmp_path)
    assert dataset.ApprovalStatus == "UNAPPROVED"
    roi = dataset.StructureSetROISequence[0]
    assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
    identification = roi.ROIDerivationAlgorithmIdentificationSequence[0]
    assert identification.AlgorithmVersion == "ab" * 32
    assert (dataset.PatientID, dataset.StudyInstanceUID) == ("4711", "1.2.840.99.1")
    assert dataset.SeriesInstanceUID != "1.2.840.99.2"


def test_observations_of_standard_names_are_coded_and_others_are_not_guessed(tmp_path: Path) -> None:
    coded = export_one(tmp_path, name="Parotid_L").RTROIObservationsSequence[0]
    (identification,) = coded.RTROIIdentificationCodeSequence
    assert (identification.CodingSchemeDesignator, identification.CodeValue) == ("SCT", "45289007")
    assert identification.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    other = export_one(tmp_path, name="something else").RTROIObservationsSequence[0]
    assert "RTROIIdentificationCodeSequence" not in other


def test_every_contour_names_the_image_it_lies_on(tmp_path: Path) -> None:
    dataset = export_one(tmp_path)
    target = grid((9, 26, 34), (3.0, 1.0, 1.0))
    for item in dataset.ROIContourSequence[0].ContourSequence:
        z = int(item.ContourImageSequence[0].ReferencedSOPInstanceUID.rsplit(".", 1)[1])
        assert float(item.ContourData[2]) == pytest.approx(target.affine.to_points((z, 0, 0))[2], abs=1e-3)


def test_a_contour_on_a_filled_gap_names_no_image(tmp_path: Path) -> None:
    target = grid((9, 26, 34), (3.0, 1.0, 1.0))
    mask = np.ones(target.shape_zyx, dtype=bool)
    path = tmp_path / "rtstruct.dcm"
    reference = reference_for(target, leave_out=(3, 4))
    rois = rois_from_masks([("All", mask)], target)
    written = export_rtstruct(path, rois, target, reference, algorithm=ALGORITHM)
    assert written.rois[0].without_image == 2
    named = {
        image.ReferencedSOPInstanceUID
        for item in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
        for image in item.get("ContourImageSequence", [])
    }
    assert named == {uid for uid, _ in reference.slices}


def test_a_structure_without_contours_comes_back_unknown(tmp_path: Path) -> None:
    target = grid((3, 4, 5), (3.0, 1.0, 1.0))
    path = tmp_path / "rtstruct.dcm"
    rois = [Roi(name="Nothing", polygons=[])]
    export_rtstruct(path, rois, target, reference_for(target), algorithm=ALGORITHM)
    placed = annotations_from_rtstruct(read_rtstruct(path), target, sop_uids=[], frame_of_reference_uid=FRAME)
    assert placed.annotations[0].state is State.UNKNOWN
    assert [f.code for f in placed.findings] == ["no-contours"]


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    export_one(tmp_path)
    structure_set = read_rtstruct(tmp_path / "rtstruct.dcm")
    with pytest.raises(RefusedInput, match="frame of reference"):
        annotations_from_rtstruct(
            structure_set, grid((9, 26, 34), (3.0, 1.0, 1.0)), sop_uids=[], frame_of_reference_uid="1.2.3"
        )


@pytest.mark.parametrize(
    ("text", "fault"),
    [("nan\\1\\2\\3\\4\\5\\6\\7\\8", "finite"), ("1\\2\\3\\4", "multiple of 3"), ("x\\1\\2", "no number")],
)
def test_contours_that_are_none_make_only_their_structure_unknown(
    tmp_path: Path, text: str, fault: str
) -> None:
    target = grid((9, 26, 34), (3.0, 1.0, 1.0))
    mask = blobs(np.random.default_rng(1), target.shape_zyx)
    path = tmp_path / "rtstruct.dcm"
    rois = rois_from_masks([("Bad", mask), ("Good", mask)], target)
    export_rtstruct(path, rois, target, reference_for(target), algorithm=ALGORITHM)
    original = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence[0].get_item("ContourData").value
    damaged = text.encode().ljust(len(original), b" ")
    path.write_bytes(path.read_bytes().replace(original, damaged, 1))
    placed = annotations_from_rtstruct(read_rtstruct(path), target, sop_uids=[], frame_of_reference_uid=FRAME)
    assert [a.state for a in placed.annotations] == [State.UNKNOWN, State.CONTOURED]
    assert any(fault in f.message for f in placed.findings)


def test_a_roi_name_with_the_patients_name_or_number_is_kept_private(tmp_path: Path) -> None:
    for name in ("GTV Jane", "doe_bladder", "CTV 4711", "PTV 20260101"):
        export_one(tmp_path, name=name)
        structure_set = read_rtstruct(tmp_path / "rtstruct.dcm")
        assert structure_set.rois[0].name == "Structure 1", name
        assert structure_set.rois[0].original_name == name
    export_one(tmp_path, name="GTV 60Gy")
    assert read_rtstruct(tmp_path / "rtstruct.dcm").rois[0].name == "GTV 60Gy"


def test_decimals_are_read_as_pydicom_reads_them(rng: np.random.Generator) -> None:
    text = "\\".join([f"{v:.10g}" for v in rng.normal(0, 300, 999)] + ["1e-3", "-0", " 12.50 "])
    expected = [float(v) for v in text.split("\\")]
    assert parse_decimals(text.encode()).tolist() == expected


def test_a_case_that_is_not_from_dicom_has_no_rtstruct() -> None:
    with pytest.raises(DataError, match="NIfTI"):
        SeriesReference.from_record({"kind": "nifti"})


def test_the_algorithm_is_coded_as_the_standard_codes_it(tmp_path: Path) -> None:
    target = grid((9, 26, 34), (3.0, 1.0, 1.0))
    mask = np.zeros(target.shape_zyx, dtype=bool)
    mask[4, 8:12, 8:12] = True
    rois = rois_from_masks([("Bladder", mask)], target)
    export_rtstruct(tmp_path / "rs.dcm", rois, target, reference_for(target), algorithm=ALGORITHM)
    (roi,) = pydicom.dcmread(tmp_path / "rs.dcm").StructureSetROISequence
    (family,) = roi.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmFamilyCodeSequence
    said = (family.CodingSchemeDesignator, family.CodeValue, family.CodeMeaning)
    known = codes.DCM.ArtificialIntelligence
    assert said == (known.scheme_designator, known.value, known.meaning)
