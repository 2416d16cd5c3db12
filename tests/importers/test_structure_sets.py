"""Several structure sets on one series: a bad one costs nothing but itself, and none overwrites another."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from consilium.cases.annotate import write_annotation
from consilium.cases.dataset import create_dataset
from consilium.cases.draft import CaseDraft
from consilium.cases.nifti import write_nifti
from consilium.cli.console import run_verb
from consilium.cli.exporting import _original_name
from consilium.cli.verbs import load_verb
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.importers.sources import find_sources
from consilium.phantoms.dicom import SeriesIdentity, write_series, write_structures
from consilium.types import no_progress

GRID = Grid((6, 20, 20), Affine.from_spacing((3.0, 2.0, 2.0)))
SQUARE = [np.array([[4, 4, z], [20, 4, z], [20, 20, z], [4, 20, z]], dtype=float) for z in (3.0, 6.0, 9.0)]


def patient(folder: Path, *names: str) -> None:
    """A CT with one RTSTRUCT per name, each with a structure of that name."""
    identity = SeriesIdentity(label="One")
    image = Volume(np.full(GRID.shape_zyx, 20, np.int16), GRID)
    instances = write_series(folder / "ct", image, identity)
    for k, name in enumerate(names):
        write_structures(folder / f"rs{k}.dcm", {name: SQUARE}, GRID, identity, instances=instances)


def read(folder: Path) -> CaseDraft:
    found = find_sources(folder)
    (source,) = found.sources
    return source.read(no_progress)


def change(path: Path, how: Callable[[Any], None]) -> None:
    dataset = dcmread(path)
    how(dataset)
    dataset.save_as(path)


def of_another_patient(dataset: Any) -> None:
    dataset.PatientID = "SOMEBODY-ELSE"


def in_another_frame(dataset: Any) -> None:
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = generate_uid()


def without_structures(dataset: Any) -> None:
    del dataset.StructureSetROISequence


def test_a_patient_is_one_although_only_some_objects_say_who_issued_the_id(tmp_path: Path) -> None:
    def issued(dataset: Any) -> None:
        dataset.IssuerOfPatientID = "Hospital"

    patient(tmp_path, "Bladder")
    before = read(tmp_path)
    for path in sorted(tmp_path.rglob("ct_*.dcm"))[1:]:
        change(path, issued)
    after = read(tmp_path)
    assert after.patient_identity == before.patient_identity
    assert [a.structure for a in after.annotations] == ["Bladder"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (of_another_patient, "wrong-patient"),
        (in_another_frame, "wrong-frame"),
        (without_structures, "refused-structures"),
    ],
)
def test_a_bad_structure_set_is_left_out_with_a_finding(
    tmp_path: Path, fault: Callable[[Any], None], code: str
) -> None:
    patient(tmp_path, "Bladder", "Rectum")
    change(tmp_path / "rs0.dcm", fault)
    draft = read(tmp_path)
    assert [a.structure for a in draft.annotations] == ["Rectum"]
    (finding,) = [f for f in draft.findings if f.code == code]
    assert finding.remedy
    assert "SOMEBODY" not in finding.message


@pytest.mark.parametrize("kind", ["EXTERNAL", "SUPPORT", "MARKER"])
def test_what_is_no_organ_or_target_is_left_out_with_a_finding(tmp_path: Path, kind: str) -> None:
    patient(tmp_path, "Outline", "Rectum")
    change(
        tmp_path / "rs0.dcm", lambda d: setattr(d.RTROIObservationsSequence[0], "RTROIInterpretedType", kind)
    )
    draft = read(tmp_path)
    assert [a.structure for a in draft.annotations] == ["Rectum"]
    (finding,) = [f for f in draft.findings if f.code == "no-structure"]
    assert kind in finding.message


def test_each_structure_set_keeps_its_own_original_names(tmp_path: Path) -> None:
    """Both names hold the patient's id and become the same public name."""
    patient(tmp_path / "in", "PHANTOM-One bladder", "PHANTOM-One rectum")
    draft = read(tmp_path / "in")
    assert {a.structure for a in draft.annotations} == {"Structure 1"}
    dataset = create_dataset(tmp_path / "out")
    case, _ = dataset.add(draft)
    record = dataset.private_part().read_record(case.case_id)
    names = [_original_name(record, case, "Structure 1", reader) for reader in ("clinical", "clinical-2")]
    assert names == ["PHANTOM-One bladder", "PHANTOM-One rectum"]
    flat = record | {"structure_names": {"Structure 1": "as older datasets have it"}}
    assert _original_name(flat, case, "Structure 1", None) == "as older datasets have it"


def test_a_patient_is_one_in_whatever_character_set_the_id_is_written(tmp_path: Path) -> None:
    def written_in(character_set: str) -> Callable[[Any], None]:
        def write(dataset: Any) -> None:
            dataset.SpecificCharacterSet, dataset.PatientID = character_set, "Müller-1"

        return write

    patient(tmp_path, "Bladder", "Rectum")
    for path in tmp_path.rglob("ct_*.dcm"):
        change(path, written_in("ISO_IR 192"))
    change(tmp_path / "rs0.dcm", written_in("ISO_IR 192"))
    change(tmp_path / "rs1.dcm", written_in("ISO_IR 100"))
    draft = read(tmp_path)
    assert draft.patient_identity == "Müller-1"
    assert [a.structure for a in draft.annotations] == ["Bladder", "Rectum"]


def test_of_several_named_series_the_one_that_was_drawn_on_gets_the_contours(tmp_path: Path) -> None:
    """A planning system names every registered image; each has a frame of reference of its own."""
    patient(tmp_path, "Bladder")
    others = [SeriesIdentity(label="One", scan=scan) for scan in "abcdef"]
    for other in others:
        image = Volume(np.full(GRID.shape_zyx, 20, np.int16), GRID)
        write_series(tmp_path / other.scan, image, other)
        write_structures(tmp_path / "of_another.dcm", {"Bladder": SQUARE}, GRID, other)
        frames = dcmread(tmp_path / "of_another.dcm").ReferencedFrameOfReferenceSequence
        change(tmp_path / "rs0.dcm", lambda d, f=frames: d.ReferencedFrameOfReferenceSequence.insert(0, f[0]))
    (tmp_path / "of_another.dcm").unlink()
    drafts = [source.read(no_progress) for source in find_sources(tmp_path).sources]
    placed = {d.source_identity: [a.structure for a in d.annotations] for d in drafts if d.annotations}
    assert len(drafts) == 7
    assert placed == {SeriesIdentity(label="One").uid("series", "CT"): ["Bladder"]}


def test_an_empty_contour_covers_nothing_and_costs_its_structure_nothing(tmp_path: Path) -> None:
    def empty_first(dataset: Any) -> None:
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData, contour.NumberOfContourPoints = None, 0

    patient(tmp_path, "Bladder")
    change(tmp_path / "rs0.dcm", empty_first)
    draft = read(tmp_path)
    (annotation,) = draft.annotations
    assert annotation.mask is not None
    assert np.flatnonzero(annotation.mask().any(axis=(1, 2))).tolist() == [2, 3]
    assert [f.code for f in draft.findings] == ["without-area"]


def test_contours_of_a_roi_that_stand_in_several_items_are_all_read(tmp_path: Path) -> None:
    def split_in_two(dataset: Any) -> None:
        (whole,) = dataset.ROIContourSequence
        rest = deepcopy(whole)
        rest.ContourSequence = list(whole.ContourSequence)[1:]
        whole.ContourSequence = list(whole.ContourSequence)[:1]
        dataset.ROIContourSequence = [whole, rest]

    patient(tmp_path, "Bladder")
    change(tmp_path / "rs0.dcm", split_in_two)
    (annotation,) = read(tmp_path).annotations
    assert annotation.mask is not None
    assert np.flatnonzero(annotation.mask().any(axis=(1, 2))).tolist() == [1, 2, 3]


def test_a_contour_that_is_written_twice_counts_once(tmp_path: Path) -> None:
    def repeat(dataset: Any) -> None:
        contours = dataset.ROIContourSequence[0].ContourSequence
        contours.append(deepcopy(contours[1]))

    patient(tmp_path, "Bladder")
    change(tmp_path / "rs0.dcm", repeat)
    draft = read(tmp_path)
    (annotation,) = draft.annotations
    assert annotation.mask is not None
    assert np.flatnonzero(annotation.mask().any(axis=(1, 2))).tolist() == [1, 2, 3]
    assert [f.code for f in draft.findings] == ["repeated-contours"]


def test_structures_of_one_original_name_or_none_are_exported_under_the_names_that_they_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["PHANTOM-One GTV", "PHANTOM-One GTV", "Bladder", "Bladder", ""]
    identity = SeriesIdentity(label="One")
    instances = write_series(
        tmp_path / "in", Volume(np.full(GRID.shape_zyx, 20, np.int16), GRID), SeriesIdentity(label="One")
    )
    contours = {f"Structure {k}": SQUARE for k in range(1, 6)}
    write_structures(tmp_path / "in" / "rs.dcm", contours, GRID, identity, instances=instances)

    def rename(dataset: Any) -> None:
        for roi, name in zip(dataset.StructureSetROISequence, names, strict=True):
            roi.ROIName = name

    change(tmp_path / "in" / "rs.dcm", rename)
    create_dataset(tmp_path / "dataset").add(read(tmp_path / "in"))
    places = [str(tmp_path / name) for name in ("dataset", "out")]
    assert run_verb(load_verb("export"), [*places, "--to=rtstruct"]) == 0
    (written,) = (tmp_path / "out").iterdir()
    exported = {str(roi.ROIName) for roi in dcmread(written).StructureSetROISequence}
    assert exported == {"PHANTOM-One GTV", "Structure 2", "Bladder", "Bladder (2)", "Structure 5"}
    assert "PHANTOM" not in capsys.readouterr().err


def export(folder: Path, *options: str) -> int:
    return run_verb(load_verb("export"), [str(folder / name) for name in ("dataset", "out")] + list(options))


@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_a_case_that_cannot_be_exported_does_not_keep_the_others_from_it(tmp_path: Path, kind: str) -> None:
    patient(tmp_path / "in" / "dicom", "Bladder")
    image = Volume(np.zeros(GRID.shape_zyx, np.int16), GRID)
    write_series(tmp_path / "in" / "without", image, SeriesIdentity(label="Two"))
    for name in "abcdef":
        (tmp_path / "in" / name / "masks").mkdir(parents=True)
        write_nifti(tmp_path / "in" / name / "ct.nii.gz", image)
        write_nifti(tmp_path / "in" / name / "masks" / "Bladder.nii.gz", Volume(image.array == 0, GRID))
    dataset = create_dataset(tmp_path / "dataset")
    for source in find_sources(tmp_path / "in").sources:
        dataset.add(source.read(no_progress))
    assert export(tmp_path, f"--to={kind}") == 1
    (written,) = (tmp_path / "out").iterdir()
    assert "Bladder" in str(dcmread(written))


def test_a_misspelt_structure_or_reader_is_refused_and_any_name_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient(tmp_path / "in", "PTV [/54]")
    create_dataset(tmp_path / "dataset").add(read(tmp_path / "in"))
    for option in ("--structure=PTV", "--reader=nobody"):
        assert export(tmp_path, "--to=nifti", option) == 2
    assert export(tmp_path, "--to=nnunet", "--structure=PTV [/54]") == 0
    assert "PTV [/54]" in capsys.readouterr().out


def test_a_copy_of_a_structure_set_is_no_second_reader(tmp_path: Path) -> None:
    patient(tmp_path, "Bladder")
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "rs0.dcm").read_bytes())
    draft = read(tmp_path)
    assert [(a.structure, a.reader) for a in draft.annotations] == [("Bladder", "clinical")]
    assert [f.code for f in draft.findings] == ["copied-structures"]


@pytest.mark.parametrize(
    ("kind", "said"), [("rtstruct", "ROIGenerationAlgorithm"), ("seg", "SegmentAlgorithmType")]
)
def test_what_a_model_drew_is_exported_for_its_reader_and_said_to_be_automatic(
    tmp_path: Path, kind: str, said: str
) -> None:
    patient(tmp_path / "in", "Rectum")
    dataset = create_dataset(tmp_path / "dataset")
    case, _ = dataset.add(read(tmp_path / "in"))
    mask = np.zeros(GRID.shape_zyx, dtype=bool)
    mask[2:4, 5:9, 5:9] = True
    write_annotation(dataset, case.case_id, "Bladder", mask, reader="model-0123abcd")
    assert export(tmp_path, f"--to={kind}", "--reader=model-0123abcd") == 0
    (written,) = (tmp_path / "out").iterdir()
    exported = dcmread(written)
    items = exported.StructureSetROISequence if kind == "rtstruct" else exported.SegmentSequence[-1:]
    assert [str(item[said].value) for item in items] == ["AUTOMATIC"]
    assert "Bladder" in str(items[0])
