"""Reading a whole dataset against its written format: every departure is a finding, nothing is changed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np

from consilium.cases.case import Case, State
from consilium.cases.dataset import MANIFEST, Dataset
from consilium.cases.folder import CASE_RECORD
from consilium.cases.identifiers import looks_like_identifier, private_values
from consilium.cases.nifti import content_sha256
from consilium.errors import ConsiliumError, DatasetError
from consilium.types import Array, Progress, no_progress

VOLUME_TOLERANCE = 1e-6
IMPORT_REPORT = "import-report.json"
KNOWN_ENTRIES = {MANIFEST, "cases", "private", "cache", "undo", "names.toml", IMPORT_REPORT, ".lock"}
RESTORE = "Restore it, or import the case again with --replace."
RECORD_AGAIN = "Import the case again with --replace."


class Severity(StrEnum):
    """ERROR: the format is broken, or something is shown that must not be. WARNING: usable all the same."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True)
class DatasetFinding:
    """One departure from the format.

    Args:
        severity: How bad.
        code: Stable word for programs, e.g. ``"digest"``.
        where: The case's id or a file of the dataset; never an identifier.
        message: What must hold and what was found.
        remedy: What can be done about it.
    """

    severity: Severity
    code: str
    where: str
    message: str
    remedy: str


def validate_dataset(dataset: Dataset, progress: Progress = no_progress) -> list[DatasetFinding]:
    """Everything in a dataset that is not as ``docs/reference/dataset-format.md`` says.

    Reads every file: schema of the records, digests of records, images and masks, grids, values and counts
    of masks, files that belong to no case, the private part's modes and records, and whatever outside the
    private part looks like an identifier or is one.

    Returns:
        The findings, case by case; empty for a dataset that is as it must be.
    """
    findings = list(_check_folder(dataset))
    case_ids = dataset.case_ids
    for done, case_id in enumerate(case_ids):
        progress("checking cases", done, len(case_ids))
        findings += validate_case(dataset, case_id)
    progress("checking cases", len(case_ids), len(case_ids))
    return findings


def _finding(code: str, where: str, message: str, remedy: str, *, warn: bool = False) -> DatasetFinding:
    severity = Severity.WARNING if warn else Severity.ERROR
    return DatasetFinding(severity=severity, code=code, where=where, message=message, remedy=remedy)


@cache
def _schema(name: str) -> Any:
    text = resources.files("consilium.cases").joinpath("schema", f"{name}.schema.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _check_schema(name: str, record: Any, where: str) -> Iterator[DatasetFinding]:
    for error in _schema(name).iter_errors(record):
        message = f"must fit {name}.schema.json; at {error.json_path}: {error.message[:200]}"
        yield _finding("schema", where, message, RESTORE)


def _check_folder(dataset: Dataset) -> Iterator[DatasetFinding]:
    folder = dataset.folder
    text = (folder / MANIFEST).read_text("utf-8")
    manifest = json.loads(text)
    yield from _check_schema("dataset", manifest, MANIFEST)
    yield from _check_text(MANIFEST, text)
    if (folder / IMPORT_REPORT).is_file():
        yield from _check_text(IMPORT_REPORT, (folder / IMPORT_REPORT).read_text("utf-8", "replace"))
    for entry in sorted(folder.iterdir()):
        if entry.name not in KNOWN_ENTRIES:
            message = "the dataset's folder must hold nothing else; found an entry that is not of the format."
            remedy = "Move it elsewhere: nobody checks it for identifiers."
            yield _finding("orphan", _safe(entry.name), message, remedy, warn=True)
    for entry in sorted((folder / "cases").iterdir()):
        if entry.name not in manifest["cases"]:
            leftover = entry.name.startswith(".")
            message = (
                "must be listed in the manifest or not be there; it is what a killed import left."
                if leftover or re.fullmatch(r"case-[0-9a-f]{16}", entry.name)
                else "must be a case's folder; found another name."
            )
            remedy = "Import its source again; delete it if the source is gone."
            yield _finding("orphan", f"cases/{_safe(entry.name)}", message, remedy, warn=True)
    yield from _check_private_part(dataset)


def _check_private_part(dataset: Dataset) -> Iterator[DatasetFinding]:
    folder = dataset.folder / "private"
    if not folder.is_dir():
        message = "must be there to import more or to export to clinical systems; it is missing."
        remedy = "Right for a copy that left the hospital; else restore it from a backup."
        yield _finding("no-private-part", "private", message, remedy, warn=True)
        return
    try:
        private = dataset.private_part()
    except DatasetError as error:
        yield _finding("private-key", "private", str(error), "Restore it from a backup.")
        return
    if not private.is_closed_to_others():
        message = "only the owner may enter it (mode 0700); others may."
        yield _finding("private-open", "private", message, "Run: chmod -R go= on the folder private.")
    open_files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
    if open_files:
        message = f"its files must have mode 0600; {len(open_files)} can be read by others."
        yield _finding("private-open", "private", message, "Run: chmod -R go= on the folder private.")
    known = set(dataset.case_ids)
    orphans = [p for p in (folder / "cases").glob("*.json") if p.stem not in known]
    if orphans:
        message = f"must hold records of the manifest's cases only; {len(orphans)} are of no case."
        yield _finding("private-orphan", "private/cases", message, "Delete them.", warn=True)


def validate_case(dataset: Dataset, case_id: str) -> Iterator[DatasetFinding]:
    """Everything in one case that is not as it must be."""
    folder = dataset.case_folder(case_id)
    try:
        content = (folder / CASE_RECORD).read_bytes()
        record = json.loads(content)
    except (OSError, ValueError) as error:
        message = f"{CASE_RECORD} must be readable JSON; {type(error).__name__} on reading it."
        yield _finding("unreadable", case_id, message, RESTORE)
        return
    yield from _check_schema("case", record, case_id)
    try:
        case = dataset.case(case_id)
    except DatasetError as error:
        code = "digest" if "digest" in str(error) else "record"
        yield _finding(code, case_id, str(error).partition(": ")[2], RESTORE)
        return
    if case.case_id != case_id:
        yield _finding("record", case_id, "case_id must be the folder's name; it is another.", RESTORE)
    summary = {a.structure: str(case.state(a.structure)) for a in case.annotations}
    if record.get("structures") != summary:
        message = "the summary of structures must follow from the annotations; it does not."
        yield _finding("summary", case_id, message, RECORD_AGAIN)
    yield from _check_files(folder, case)
    yield from _check_image(dataset, case)
    for annotation in case.annotations:
        if annotation.state is State.CONTOURED:
            yield from _check_mask(dataset, case, annotation.structure, annotation.reader)
    yield from _check_identifiers(dataset, case, content.decode("utf-8"))


def _check_files(folder: Path, case: Case) -> Iterator[DatasetFinding]:
    named = {CASE_RECORD, case.image.file, *(a.file for a in case.annotations if a.file)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            message = "a case's files must be files of their own; found a link."
            yield _finding("link", f"{case.case_id}/{_safe(name)}", message, "Put the file in its place.")
        elif path.is_file() and name not in named:
            message = "every file of a case must stand in its record; this one does not."
            remedy = "Delete it, or move it out of the dataset."
            yield _finding("orphan", f"{case.case_id}/{_safe(name)}", message, remedy, warn=True)


def _check_image(dataset: Dataset, case: Case) -> Iterator[DatasetFinding]:
    where = f"{case.case_id}/{case.image.file}"
    try:
        image = dataset.load_image(case).array
    except (ConsiliumError, OSError) as error:
        yield _finding("unreadable", where, _reason(error), RESTORE)
        return
    yield from _check_content(where, image, case.image.content_sha256)
    if image.dtype.name != case.image.dtype:
        message = f"must be of type {case.image.dtype}; found {image.dtype.name}."
        yield _finding("dtype", where, message, RECORD_AGAIN)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        message = f"every voxel must be finite; {int((~np.isfinite(image)).sum())} are not."
        yield _finding("not-finite", where, message, "Mend the source and import it again with --replace.")
    yield from _check_header(dataset.case_folder(case.case_id) / case.image.file, where)


def _check_mask(dataset: Dataset, case: Case, structure: str, reader: str) -> Iterator[DatasetFinding]:
    annotation = case.annotation(structure, reader)
    if annotation is None or annotation.file is None:
        return
    where = f"{case.case_id}/{annotation.file}"
    try:
        mask = dataset.load_instances(case, structure, reader)
    except (ConsiliumError, OSError) as error:
        yield _finding("unreadable", where, _reason(error), RESTORE)
        return
    if mask.dtype.kind != "u":
        message = f"a mask must be of an unsigned type; found {mask.dtype.name}."
        yield _finding("dtype", where, message, RECORD_AGAIN)
    yield from _check_content(where, mask, annotation.content_sha256 or "")
    numbers = {i.number for i in case.instances if i.structure == structure} or {1}
    values = {int(value) for value in np.unique(mask)} - {0}
    if not values <= numbers:
        message = f"values must be 0 and the numbers of its instances; {len(values - numbers)} others found."
        yield _finding("values", where, message, RECORD_AGAIN)
    voxels = int(np.count_nonzero(mask))
    volume = voxels * case.image.grid.voxel_volume_cm3
    if voxels != annotation.voxels or abs(volume - annotation.volume_cm3) > VOLUME_TOLERANCE * max(1, volume):
        message = (
            f"voxels and volume must be the record's, {annotation.voxels} and "
            f"{annotation.volume_cm3:.3f} cm³; found {voxels} and {volume:.3f} cm³."
        )
        yield _finding("count", where, message, RECORD_AGAIN)
    yield from _check_header(dataset.case_folder(case.case_id) / annotation.file, where)


def _check_content(where: str, array: Array, digest: str) -> Iterator[DatasetFinding]:
    if content_sha256(array) != digest:
        yield _finding(
            "digest", where, "its content must have the digest of the record; it has not.", RESTORE
        )


def _check_header(path: Path, where: str) -> Iterator[DatasetFinding]:
    """Free text in a NIfTI header, where converters leave names and dates."""
    header = nibabel.load(path).header
    fields = ("descrip", "aux_file", "intent_name", "db_name")
    texts = [bytes(header[name].tobytes()).strip(b"\0 ") for name in fields if name in header]
    if any(texts) or len(header.extensions):
        message = "a NIfTI header must carry no free text; it does."
        yield _finding("header-text", where, message, RECORD_AGAIN)


def _check_identifiers(dataset: Dataset, case: Case, text: str) -> Iterator[DatasetFinding]:
    yield from _check_text(f"{case.case_id}/{CASE_RECORD}", text)
    try:
        record = dataset.private_part().read_record(case.case_id)
    except (DatasetError, OSError):
        return
    shown = sorted(key for key, value in private_values(record) if value in text)
    if shown:
        message = (
            f"must hold no identifier; it holds the private record's {', '.join(sorted(set(shown))[:5])}."
        )
        remedy = "Take it out at the source (often a structure's name) and import again with --replace."
        yield _finding("identifier", f"{case.case_id}/{CASE_RECORD}", message, remedy)


def _check_text(where: str, text: str) -> Iterator[DatasetFinding]:
    for kind in looks_like_identifier(text):
        message = f"must hold no identifier; something in it looks like {kind}."
        remedy = "Take it out at the source (often a structure's name) and import again with --replace."
        yield _finding("identifier", where, message, remedy)


def _safe(name: str) -> str:
    """A file's name for a report; not shown where it looks like an identifier."""
    return "(name not shown)" if looks_like_identifier(name) else name


def _reason(error: Exception) -> str:
    if isinstance(error, ConsiliumError):
        return str(error).partition(": ")[2]
    return f"must be readable; {type(error).__name__} on reading it."
