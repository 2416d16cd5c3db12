"""`validate_dataset`: a dataset as written has no finding, and each seeded fault has its own."""

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from consilium.cases.case import Case, Instance, State, case_from_json, case_to_json
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft
from consilium.cases.identifiers import looks_like_identifier
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.cases.validate import Severity, validate_dataset
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from tests.cases.drafts import draft


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft(1))
    nodules = np.zeros((12, 20, 18), np.uint8)
    nodules[3:5, 3:6, 3:6], nodules[8:9, 9:12, 9:12] = 1, 2
    centre = (1.0, 2.0, 3.0)
    instances = tuple(
        Instance(structure="Nodule", number=n, centre_lps_mm=centre, diameter_mm=4.0, readers=("reader-1",))
        for n in (1, 2)
    )
    annotation = AnnotationDraft(structure="Nodule", reader="reader-1", mask=lambda: nodules)
    unknown = AnnotationDraft(structure="Lung", reader="reader-1", state=State.UNKNOWN)
    dataset.add(replace(draft(2), annotations=(annotation, unknown), instances=instances))
    return dataset


def codes(dataset: Dataset) -> list[str]:
    return sorted({finding.code for finding in validate_dataset(dataset)})


def test_a_dataset_as_written_has_no_finding_and_progress_comes_to_its_end(dataset: Dataset) -> None:
    seen = []
    assert validate_dataset(dataset, lambda *step: seen.append(step)) == []
    assert seen[-1] == ("checking cases", 2, 2)


def rewrite_record(dataset: Dataset, change: Callable[[dict], object]) -> None:
    """Change a record so that its digest still fits, as another program might."""
    case_id = dataset.case_ids[0]
    path = dataset.case_folder(case_id) / "case.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    manifest = json.loads((dataset.folder / "dataset.json").read_text())
    manifest["cases"][case_id] = hashlib.sha256(path.read_bytes()).hexdigest()
    (dataset.folder / "dataset.json").write_text(json.dumps(manifest))


def bladder(dataset: Dataset) -> tuple[Case, Path]:
    """The case with the bladder and its mask's file."""
    case = next(c for c in dataset.cases() if "Bladder" in c.structures)
    annotation = case.annotation("Bladder", "clinical")
    assert annotation is not None
    assert annotation.file is not None
    return case, dataset.case_folder(case.case_id) / annotation.file


def change_mask(dataset: Dataset, change: Callable[[Volume], Volume]) -> None:
    _, path = bladder(dataset)
    write_nifti(path, change(read_nifti(path)))


def shifted(volume: Volume) -> Volume:
    return Volume(volume.array, Grid(volume.array.shape, volume.grid.affine.shifted((0, 1, 0))))


def sheared(volume: Volume) -> Volume:
    matrix = volume.grid.affine.matrix.copy()
    matrix[0, 0] += 0.1
    return Volume(volume.array, Grid(volume.array.shape, Affine(matrix)))


def write_in_header(dataset: Dataset) -> None:
    path = bladder(dataset)[0].image.file
    file = dataset.case_folder(bladder(dataset)[0].case_id) / path
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[148:156] = b"Doe Jane"
    file.write_bytes(gzip.compress(bytes(content)))


FAULTS: list[tuple[str, str, Callable[[Dataset], object]]] = [
    ("record changed", "digest", lambda d: _append(d.case_folder(d.case_ids[0]) / "case.json", " ")),
    ("record gone", "unreadable", lambda d: (d.case_folder(d.case_ids[0]) / "case.json").unlink()),
    ("record no JSON", "unreadable", lambda d: (d.case_folder(d.case_ids[0]) / "case.json").write_text("{")),
    ("unknown field", "schema", lambda d: rewrite_record(d, lambda r: r.update(birthday=1))),
    ("field missing", "schema", lambda d: rewrite_record(d, lambda r: r.pop("findings"))),
    ("path leads out", "schema", lambda d: rewrite_record(d, lambda r: r["image"].update(file="../key"))),
    ("wrong summary", "summary", lambda d: rewrite_record(d, lambda r: r.update(structures={}))),
    ("other id", "record", lambda d: rewrite_record(d, lambda r: r.update(case_id="case-" + "0" * 16))),
    ("mask cut short", "unreadable", lambda d: _cut(bladder(d)[1])),
    ("mask gone", "unreadable", lambda d: bladder(d)[1].unlink()),
    ("mask edited", "digest", lambda d: change_mask(d, lambda v: Volume(np.roll(v.array, 1, 0), v.grid))),
    ("mask grown", "count", lambda d: change_mask(d, lambda v: Volume(np.ones_like(v.array), v.grid))),
    ("mask moved", "unreadable", lambda d: change_mask(d, shifted)),
    ("mask sheared", "unreadable", lambda d: change_mask(d, sheared)),
    ("mask value 7", "values", lambda d: change_mask(d, lambda v: Volume(v.array * np.uint8(7), v.grid))),
    ("mask signed", "dtype", lambda d: change_mask(d, lambda v: Volume(v.array.astype(np.int16), v.grid))),
    ("text in header", "header-text", write_in_header),
    ("stray file in case", "orphan", lambda d: (bladder(d)[1].parent / "notes.txt").touch()),
    ("stray file", "orphan", lambda d: (d.folder / "export.zip").touch()),
    ("killed import", "orphan", lambda d: (d.folder / "cases" / ".incoming-case-1").mkdir()),
    ("link", "link", lambda d: _link(bladder(d)[1])),
    ("private part open", "private-open", lambda d: (d.folder / "private").chmod(0o755)),
    ("private file open", "private-open", lambda d: (d.folder / "private" / "key").chmod(0o644)),
    ("private key gone", "private-key", lambda d: (d.folder / "private" / "key").unlink()),
    ("record of nobody", "private-orphan", lambda d: (d.folder / "private/cases/case-0.json").touch(0o600)),
]


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize(("code", "fault"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_seeded_fault_is_found(dataset: Dataset, code: str, fault: Callable[[Dataset], object]) -> None:
    fault(dataset)
    assert code in codes(dataset)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GTV 1.3.6.1.4.1.14519.5.2.1", "a DICOM UID"),
        ("Boost 20190304", "a date"),
        ("Boost 2019-03-04", "a date"),
        ("Boost 4.3.2019", "a date"),
        ("Mueller^Anna", "a person's name"),
        ("drawn by a.mueller@hospital.example", "an e-mail address"),
        ("/home/planner/export", "a file path"),
    ],
)
def test_a_structure_name_that_looks_like_an_identifier_is_found(
    tmp_path: Path, text: str, kind: str
) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    absent = AnnotationDraft(structure=text, reader="clinical", state=State.ABSENT)
    dataset.add(replace(draft(), annotations=(absent,)))
    findings = [f for f in validate_dataset(dataset) if f.code == "identifier"]
    assert findings
    assert all(f.severity is Severity.ERROR for f in findings)
    assert any(kind in f.message for f in findings)
    assert not any(text in f.message + f.where for f in findings)


def test_a_private_value_outside_the_private_part_is_found(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    source = replace(draft(), private={"patient_id": "K4711X", "roi_names": ["Bladder"]})
    shown = AnnotationDraft(structure="PTV K4711X", reader="clinical", state=State.ABSENT)
    dataset.add(replace(source, annotations=(shown,)))
    (finding,) = validate_dataset(dataset)
    assert "patient_id" in finding.message
    assert "K4711X" not in finding.message


@pytest.mark.parametrize(
    "text",
    [
        "GTV_5400",
        "PTV54.2",
        "1.25 mm",
        "syngo CT 2012B",
        "Femur_L",
        "07.01",
        "5-12-8",
        json.dumps([1.5, -0.25]),
    ],
)
def test_ordinary_names_and_numbers_are_no_identifiers(text: str) -> None:
    assert looks_like_identifier(text) == []


def test_a_copy_without_its_private_part_is_warned_of_and_else_whole(dataset: Dataset) -> None:
    (dataset.folder / "private").rename(dataset.folder.parent / "kept-at-home")
    findings = validate_dataset(dataset)
    assert [(f.code, f.severity) for f in findings] == [("no-private-part", Severity.WARNING)]


def test_the_record_of_a_real_case_fits_the_schema_and_every_field_is_described(dataset: Dataset) -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "reference" / "dataset-format.md"
    text = document.read_text()
    for case in dataset.cases():
        record = case_to_json(case)
        parts = [record, record["image"], record["provenance"], *record["annotations"], *record["instances"]]
        for field in {field for part in parts for field in part}:
            assert f"`{field}`" in text, field


def test_the_documented_example_fits_the_schema_and_is_a_case() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "reference" / "dataset-format.md"
    record = json.loads(document.read_text().split("```json\n")[1].split("```")[0])
    schema = resources.files("consilium.cases").joinpath("schema", "case.schema.json").read_text("utf-8")
    jsonschema.validate(record, json.loads(schema))
    assert case_to_json(case_from_json(record)) == record
