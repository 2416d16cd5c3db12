"""De-identification: canaries planted everywhere are found nowhere, and references stay intact."""

import io
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, RTDoseStorage, SecondaryCaptureImageStorage

from consilium.cli.deidentify import deidentify
from consilium.errors import ConfigurationError, RefusedInput
from consilium.exporters.deidentify import Deidentifier, check_accepted, deidentify_folder
from consilium.geometry.volume import Volume
from consilium.phantoms.dicom import SeriesIdentity, write_series, write_structures
from consilium.standards.names import find_sure_name
from tests.data import shared_data, unpacked
from tests.geometry.grids import grid

CANARY = "CANARY"
KEY = bytes(range(32))
GRID = grid((4, 8, 10), (3.0, 1.0, 1.0))
DEIDENTIFIER = Deidentifier(KEY, find_sure_name)


def plant(dataset: Dataset, depth: int = 0) -> None:
    """Put canaries into every kind of place that an identifier hides in."""
    dataset.PatientComments = f"{CANARY} lives in Example street"
    dataset.StudyDescription = dataset.SeriesDescription = dataset.ProtocolName = CANARY
    dataset.InstitutionName = dataset.StationName = dataset.DeviceSerialNumber = CANARY
    dataset.OperatorsName = dataset.PerformingPhysicianName = f"{CANARY}^Anna"
    dataset.OtherPatientIDs = dataset.RequestingService = CANARY
    dataset.ImageComments = "/home/CANARY/export/file.dcm"
    dataset.Manufacturer = f"Siemens {CANARY}"
    dataset.BodyPartExamined = dataset.SeriesNumber = CANARY if depth > 5 else None
    dataset.AcquisitionDate = dataset.ContentDate = dataset.SeriesDate = "19770523"
    dataset.AcquisitionUID = "1.9.770523.1"
    block = dataset.private_block(0x0099, CANARY, create=True)
    block.add_new(1, "LO", CANARY)
    block.add_new(2, "UN", CANARY.encode())
    dataset.add_new(0x60003000, "OW", CANARY.encode())
    dataset.add_new(0x60000022, "LO", CANARY)
    inner = Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "1", "99X", CANARY
    inner.TextValue = CANARY
    dataset.ProcedureCodeSequence = [inner]
    for element in list(dataset):
        if element.VR == "SQ" and depth < 6:
            for item in element.value:
                item.RequestedProcedureDescription = item.InstitutionName = CANARY
                item.private_block(0x0099, CANARY, create=True).add_new(1, "LO", CANARY)


def rewrite(path: Path, dataset: Dataset) -> None:
    dataset.save_as(path, enforce_file_format=True)
    content = bytearray(path.read_bytes())
    content[:6] = CANARY.encode()
    path.write_bytes(content)


def square(z: int) -> np.ndarray:
    corners = [(z, 2, 2), (z, 2, 6), (z, 5, 6), (z, 5, 2)]
    return GRID.affine.to_points(corners)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """CT, RTSTRUCT, SEG and dose of one patient, with canaries."""
    folder = tmp_path / f"{CANARY}^source"
    identity = SeriesIdentity(label="one")
    values = np.random.default_rng(1).integers(-500, 500, GRID.shape_zyx).astype(np.int16)
    instances = write_series(folder / "ct", Volume(values, GRID), identity)
    contours = {"Parotis li": [square(1), square(2)], f"{CANARY} Heart": [square(1)], "Blase": [square(2)]}
    write_structures(folder / "rs.dcm", contours, GRID, identity, instances=instances)
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    write_segmentation(folder / "seg.dcm", slices)
    write_dose(folder / "dose.dcm", slices[0], pydicom.dcmread(folder / "rs.dcm"))
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = f"{CANARY}^Anna", f"{CANARY}-4711K"
        dataset.PatientBirthDate, dataset.AccessionNumber = "19770523", CANARY
        dataset.StudyDate, dataset.StudyID, dataset.PatientAge = "19770523", CANARY, "049Y"
        if dataset.Modality == "RTSTRUCT":
            dataset.StructureSetLabel = dataset.StructureSetName = CANARY
            dataset.StructureSetDescription = CANARY
            dataset.StructureSetROISequence[0].ROIDescription = CANARY
            dataset.RTROIObservationsSequence[0].ROIInterpreter = f"{CANARY}^Doctor"
            dataset.RTROIObservationsSequence[0].ROIObservationLabel = CANARY
            dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = identity.uid(
                "frame of reference"
            )
        plant(dataset)
        rewrite(path, dataset)
    return folder


def write_segmentation(path: Path, slices: list[Dataset]) -> None:
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"{CANARY} Bladder",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Bladder,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    mask[1:3, 2:5, 2:6] = 1
    seg = hd.seg.Segmentation(
        slices, mask, "BINARY", [description], hd.UID(), 9, hd.UID(), 1, CANARY, CANARY, "1", CANARY
    )
    seg.save_as(path)


def write_dose(path: Path, ct: Dataset, structures: Dataset) -> None:
    dose = pydicom.dcmread(io.BytesIO(_bytes_of(ct)))
    dose.SOPClassUID, dose.Modality = RTDoseStorage, "RTDOSE"
    dose.SOPInstanceUID = hd.UID()
    dose.file_meta.MediaStorageSOPInstanceUID = dose.SOPInstanceUID
    dose.DoseUnits, dose.DoseType, dose.DoseSummationType, dose.DoseGridScaling = (
        "GY",
        "PHYSICAL",
        "PLAN",
        0.01,
    )
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
        structures.SOPClassUID,
        structures.SOPInstanceUID,
    )
    dose.ReferencedStructureSetSequence = [item]
    dose.save_as(path)


def _bytes_of(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture
def copies(study: Path, tmp_path: Path) -> list[Dataset]:
    refused = deidentify_folder(sorted(study.rglob("*")), tmp_path / "out", DEIDENTIFIER)
    assert [str(r) for r in refused if "Error" not in str(r)] == []
    return [pydicom.dcmread(path) for path in sorted((tmp_path / "out").rglob("*.dcm"))]


def test_canaries_are_found_nowhere_in_the_output(copies: list[Dataset], tmp_path: Path) -> None:
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 4 + 3
    for path in files:
        content = path.read_bytes()
        for secret in (CANARY, CANARY.lower(), "4711K", "19770523", "049Y", "1.9.770523", "Anna", "Doctor"):
            assert secret.encode() not in content, (path.name, secret)
            assert secret not in str(path.relative_to(tmp_path))


def test_no_original_uid_is_left(study: Path, copies: list[Dataset]) -> None:
    originals = {str(u) for path in study.rglob("*.dcm") for u in uids(pydicom.dcmread(path))}
    assert originals
    assert not originals & {str(u) for copy in copies for u in uids(copy)}


def uids(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
            yield str(element.value)


def of_kind(copies: list[Dataset], kind: str) -> list[Dataset]:
    return [copy for copy in copies if copy.Modality == kind]


def test_references_between_the_copies_are_intact(copies: list[Dataset]) -> None:
    slices = of_kind(copies, "CT")
    (structures,), (seg,), (dose,) = (of_kind(copies, kind) for kind in ("RTSTRUCT", "SEG", "RTDOSE"))
    instances = {s.SOPInstanceUID for s in slices}
    assert len({c.PatientID for c in copies}) == len({c.StudyInstanceUID for c in copies}) == 1
    assert len({s.SeriesInstanceUID for s in slices}) == 1
    contours = [c for roi in structures.ROIContourSequence for c in roi.ContourSequence]
    assert {c.ContourImageSequence[0].ReferencedSOPInstanceUID for c in contours} <= instances
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ContourImageSequence} == instances
    frames = seg.PerFrameFunctionalGroupsSequence
    sources = {f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames}
    assert sources <= instances
    assert dose.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID


def test_geometry_pixels_contours_and_segments_are_unchanged(study: Path, copies: list[Dataset]) -> None:
    originals = {
        DEIDENTIFIER.uid(str(d.SOPInstanceUID)): d for d in map(pydicom.dcmread, study.rglob("*.dcm"))
    }
    for copy in copies:
        original = originals[str(copy.SOPInstanceUID)]
        if copy.Modality == "RTSTRUCT":
            pairs = zip(original.ROIContourSequence, copy.ROIContourSequence, strict=True)
            for one, two in pairs:
                for a, b in zip(one.ContourSequence, two.ContourSequence, strict=True):
                    assert list(a.ContourData) == list(b.ContourData)
        else:
            assert np.array_equal(copy.pixel_array, original.pixel_array)
        if copy.Modality == "CT":
            assert copy.ImagePositionPatient == original.ImagePositionPatient
            assert copy.RescaleIntercept == original.RescaleIntercept
            assert copy.Manufacturer == "Siemens"
    (seg,) = (pydicom.dcmread(io.BytesIO(_bytes_of(s))) for s in of_kind(copies, "SEG"))
    assert hd.seg.Segmentation.from_dataset(seg).number_of_segments == 1


def test_structure_names_are_standard_names_or_numbers(copies: list[Dataset]) -> None:
    (structures,) = of_kind(copies, "RTSTRUCT")
    names = [roi.ROIName for roi in structures.StructureSetROISequence]
    assert names == ["Parotid_L", "STRUCTURE 2", "Bladder"]
    assert structures.StructureSetLabel == "STRUCTURES"


@pytest.mark.parametrize(
    ("names", "become"),
    [
        (["PTV-Rectum", "Not Bladder", "Ghost_Heart"], ["STRUCTURE 1", "STRUCTURE 2", "STRUCTURE 3"]),
        (["GTV", "GTV alt"], ["GTV", "STRUCTURE 2"]),
        (["GTV alt", "GTV", "GTV"], ["STRUCTURE 1", "GTV", "STRUCTURE 3"]),
        (["Blase", "Harnblase"], ["Bladder", "STRUCTURE 2"]),
    ],
)
def test_a_name_that_is_not_sure_or_is_taken_becomes_a_number(
    names: list[str], become: list[str], tmp_path: Path
) -> None:
    path, out = tmp_path / "in" / "rs.dcm", tmp_path / "out"
    write_structures(
        path, {f"roi {k}": [square(1)] for k in range(len(names))}, GRID, SeriesIdentity(label="a")
    )
    structures = pydicom.dcmread(path)
    for item, name in zip(structures.StructureSetROISequence, names, strict=True):
        item.ROIName = name
    structures.save_as(path)
    deidentify(path.parent, out, tmp_path / "key")
    (copy,) = (pydicom.dcmread(found) for found in out.rglob("*.dcm"))
    assert [item.ROIName for item in copy.StructureSetROISequence] == become


def test_the_same_key_gives_the_same_copies_and_another_key_others(study: Path, tmp_path: Path) -> None:
    for name, key in (("a", KEY), ("b", KEY), ("c", KEY[::-1])):
        deidentify_folder(sorted(study.rglob("*")), tmp_path / name, Deidentifier(key))
    files = {
        n: {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.dcm")} for n in "abc"
    }
    assert files["a"] == files["b"]
    assert not set(files["a"]) & set(files["c"])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("secondary capture", {"SOPClassUID": SecondaryCaptureImageStorage}),
        ("converted", {"ConversionType": "WSD"}),
        ("burned in", {"BurnedInAnnotation": "YES"}),
        ("dose screen", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("colour", {"SamplesPerPixel": 3}),
        ("structured report", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}),
    ],
)
def test_what_may_show_text_is_refused(study: Path, what: str, change: dict[str, object]) -> None:
    dataset = pydicom.dcmread(next((study / "ct").iterdir()))
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    with pytest.raises(RefusedInput):
        check_accepted(dataset)


def test_bytes_behind_the_pixels_and_comments_in_compressed_ones_are_dropped(
    study: Path, tmp_path: Path
) -> None:
    path = sorted((study / "ct").iterdir())[0]
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array.copy()
    dataset.PixelData += CANARY.encode()
    assert CANARY.encode() not in bytes(DEIDENTIFIER.copy(dataset).PixelData)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(DEIDENTIFIER.copy(dataset).pixel_array, expected)


def test_damaged_files_are_refused_and_the_others_written(study: Path, tmp_path: Path) -> None:
    good = sorted((study / "ct").iterdir())
    (study / "cut.dcm").write_bytes(good[0].read_bytes()[:900])
    (study / "notes.txt").write_text("hello")
    refused = deidentify_folder([*good, study / "cut.dcm", study / "notes.txt"], tmp_path / "o", DEIDENTIFIER)
    assert [r.where for r in refused] == ["file 5"]
    assert len(list((tmp_path / "o").rglob("*.dcm"))) == 4


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "SOPInstanceUID"])
def test_a_file_without_a_uid_is_refused_and_the_others_written(
    study: Path, tmp_path: Path, keyword: str
) -> None:
    good = sorted((study / "ct").iterdir())
    damaged = pydicom.dcmread(good[0])
    del damaged[keyword]
    damaged.save_as(good[0])
    refused = deidentify_folder(good, tmp_path / "o", DEIDENTIFIER)
    assert [r.where for r in refused] == ["file 1"]
    assert len(list((tmp_path / "o").rglob("*.dcm"))) == 3


def test_a_patient_whose_id_has_an_issuer_in_one_object_only_stays_one(study: Path) -> None:
    first = pydicom.dcmread(sorted((study / "ct").iterdir())[0])
    before = DEIDENTIFIER.copy(first).PatientID
    first.IssuerOfPatientID = "Hospital"
    assert DEIDENTIFIER.copy(first).PatientID == before


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16 bytes"):
        Deidentifier(b"short")


def test_a_real_study_keeps_its_references(tmp_path: Path) -> None:
    folder = shared_data("dicom/rt-utils/mock_data")
    refused = deidentify_folder(sorted(folder.glob("*.dcm")), tmp_path / "out", DEIDENTIFIER)
    copies = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert len(copies) + len(refused) == 5
    instances = {s.SOPInstanceUID for s in of_kind(copies, "CT")}
    original = pydicom.dcmread(folder / "rt.dcm")
    copy = next(c for c in copies if c.SOPInstanceUID == DEIDENTIFIER.uid(str(original.SOPInstanceUID)))
    series = (
        copy.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    )
    assert {i.ReferencedSOPInstanceUID for i in series.ContourImageSequence} <= instances


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # a station name of 18 characters
@pytest.mark.parametrize("name", [f"STS_00{k}" for k in range(1, 5)])
def test_a_sarcoma_study_refers_to_what_it_referred_to(name: str, tmp_path: Path) -> None:
    folder = unpacked(f"sts/{name}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path))
    assert not deidentify_folder(files, tmp_path / "out", DEIDENTIFIER)
    before = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    after = [pydicom.dcmread(path, stop_before_pixels=True) for path in (tmp_path / "out").rglob("*.dcm")]
    (original,), (copy,) = of_kind(before, "RTSTRUCT"), of_kind(after, "RTSTRUCT")
    found = _references(original) & _named(before)
    assert found, "the series and the frame of reference"
    assert _references(copy) & _named(after) == {DEIDENTIFIER.uid(own) for own in found}


def _references(structures: Dataset) -> set[str]:
    names = {"ReferencedSOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}
    return {str(element.value) for element in structures.iterall() if element.keyword in names}


def _named(objects: list[Dataset]) -> set[str]:
    return {
        str(one.get(name))
        for one in objects
        if one.Modality != "RTSTRUCT"
        for name in ("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
