"""A foreign folder as it is: indexed on disk, read one case at a time: memory does not grow with it."""

import os
import secrets
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from consilium.audit.facts import CaseFacts, compute_draft_facts
from consilium.audit.judge import Audit, AuditFinding, Weight, judge
from consilium.cases.case import Finding
from consilium.cases.draft import CaseDraft
from consilium.errors import DataError, RefusedInput
from consilium.importers.dicom_scan import RTSTRUCT, DicomObject, LeftOut, read_object, scan_dicom
from consilium.importers.dicom_series import COPIED_FILES
from consilium.importers.dicom_study import Study, is_lidc, read_study, references_of
from consilium.importers.nifti import find_nifti
from consilium.importers.nnunet import find_nnunet, is_nnunet
from consilium.importers.sources import ImportOptions, Source, files_below
from consilium.types import Progress, no_progress

TABLES = """
CREATE TABLE slices (path TEXT, folder TEXT, series TEXT, frame TEXT, sop TEXT);
CREATE TABLE objects (path TEXT PRIMARY KEY, kind TEXT, frame TEXT);
CREATE TABLE named (path TEXT, series TEXT);
CREATE TABLE readings (path TEXT, folder TEXT);
CREATE TABLE niftis (path TEXT);
"""
MODALITIES = ("CT",)
COPIED = Finding(
    code=COPIED_FILES,
    message="the files of a series should be there once; other folders hold copies of them.",
    remedy="Remove the copies: an import of all of them is refused.",
)


@dataclass(frozen=True, kw_only=True)
class ArchiveAudit:
    """What was found in a folder.

    Args:
        audit: Findings; cases are called by number and the last digits of their series.
        places: Case -> folder. Private: folders may be named after patients.
        left_out: Reason -> number of files that are none of the audit's business.
    """

    audit: Audit
    places: dict[str, str]
    left_out: dict[str, int]


def audit_archive(source: Path, progress: Progress = no_progress) -> ArchiveAudit:
    """Look at every case of a folder, without importing anything.

    Raises:
        RefusedInput: If ``source`` is no folder.
    """
    if not source.is_dir():
        raise RefusedInput("source", "must be a folder; it is not.", "Check the path.")
    with tempfile.TemporaryDirectory() as scratch, closing(_open(Path(scratch) / "index")) as index:
        reading = _Reading()
        if is_nnunet(source):
            found = find_nnunet(source)
            reading.refuse_all(found.refused)
            reading.read_sources(found.sources, progress)
        else:
            _index(source, index, reading, progress)
            reading.read_dicom(index, progress)
            niftis = [Path(row[0]) for row in index.execute("SELECT path FROM niftis ORDER BY path")]
            found = find_nifti(niftis, source)
            reading.refuse_all(found.refused)
            reading.read_sources(found.sources, progress)
        result = judge(reading.facts, reading.findings, found=reading.number)
    return ArchiveAudit(audit=result, places=reading.places, left_out=reading.left_out)


def _open(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, isolation_level=None)
    index.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {TABLES}")
    return index


def _index(source: Path, index: sqlite3.Connection, reading: "_Reading", progress: Progress) -> None:
    """Note what every file is; nothing of a file stays in memory."""
    index.execute("BEGIN")
    for done, path in enumerate(files_below(source)):
        if done % 100 == 0:
            progress("reading headers", done, 0)
        if path.name.endswith((".nii", ".nii.gz")):
            index.execute("INSERT INTO niftis VALUES (?)", (str(path),))
            continue
        if path.suffix.lower() == ".xml":
            if is_lidc(path):
                index.execute("INSERT INTO readings VALUES (?, ?)", (str(path), str(path.parent)))
            continue
        try:
            found = read_object(path, MODALITIES)
        except LeftOut as reason:
            reading.left_out[str(reason)] = reading.left_out.get(str(reason), 0) + 1
        except RefusedInput as refusal:
            reading.refuse(refusal, code="unreadable-file")
        else:
            _note(index, path, found, reading)
    index.execute("CREATE INDEX slices_of ON slices (series)")
    index.execute("CREATE INDEX slices_in ON slices (frame)")
    index.execute("CREATE INDEX named_of ON named (series)")
    index.execute("CREATE INDEX named_by ON named (path)")
    index.execute("COMMIT")


def _note(index: sqlite3.Connection, path: Path, found: Any, reading: "_Reading") -> None:
    if found is None:
        return
    if isinstance(found, DicomObject):
        kind = "RTSTRUCT" if found.sop_class_uid == RTSTRUCT else "DICOM SEG"
        try:
            named, frames = references_of(found, kind)
        except RefusedInput as refusal:
            reading.refuse(refusal, code="unreadable-file")
            return
        frame = next(iter(sorted(frames | {found.frame_of_reference_uid} - {""})), "")
        index.execute("INSERT INTO objects VALUES (?, ?, ?)", (str(path), kind, frame))
        index.executemany("INSERT INTO named VALUES (?, ?)", [(str(path), uid) for uid in named - {""}])
    else:
        identity, headers = found
        key = identity.series_instance_uid or f"{path.parent}\n{identity.frame_of_reference_uid}"
        row = (str(path), str(path.parent), key, identity.frame_of_reference_uid, headers[0].sop_instance_uid)
        index.execute("INSERT INTO slices VALUES (?, ?, ?, ?, ?)", row)


def _objects_of(index: sqlite3.Connection, series: str) -> list[tuple[Path, str]]:
    """RTSTRUCT and SEG that name a series, or that name none that is there and share its frame alone."""
    rows = index.execute(
        "SELECT path, kind FROM objects WHERE path IN (SELECT path FROM named WHERE series = :series) "
        "UNION SELECT path, kind FROM objects AS o WHERE frame <> '' "
        "AND frame = (SELECT frame FROM slices WHERE series = :series LIMIT 1) "
        "AND NOT EXISTS (SELECT 1 FROM named JOIN slices USING (series) WHERE named.path = o.path) "
        "AND (SELECT count(DISTINCT series) FROM slices WHERE frame = o.frame) = 1 ORDER BY path",
        {"series": series},
    )
    return [(Path(path), kind) for path, kind in rows]


def _parts_of(index: sqlite3.Connection, series: str) -> list[list[Path]]:
    """The files of a series; one list for each folder where whole folders are copies of each other."""
    files, instances, folders = index.execute(
        "SELECT count(*), count(DISTINCT sop), count(DISTINCT folder) FROM slices WHERE series = ?", (series,)
    ).fetchone()
    copied = folders > 1 and files > instances
    parts: dict[str, list[Path]] = {}
    query = "SELECT path, folder FROM slices WHERE series = ? ORDER BY folder, path"
    for path, folder in index.execute(query, (series,)):
        parts.setdefault(folder if copied else "", []).append(Path(path))
    return list(parts.values())


def _study_of(
    index: sqlite3.Connection, paths: Sequence[Path], objects: Sequence[tuple[Path, str]]
) -> Study | RefusedInput:
    scan = scan_dicom(paths, modalities=MODALITIES)
    if len(scan.series) != 1:
        return scan.refused[0]
    folder = str(paths[0].parent)
    rows = index.execute("SELECT path FROM readings WHERE folder = ? ORDER BY path", (folder,))
    return Study(
        series=scan.series[0],
        structure_sets=tuple(path for path, kind in objects if kind == "RTSTRUCT"),
        segmentations=tuple(path for path, kind in objects if kind != "RTSTRUCT"),
        lidc_readings=tuple(Path(row[0]) for row in rows),
    )


def _nearest(objects: Sequence[tuple[Path, str]], folder: Path) -> list[tuple[Path, str]]:
    """Of several copies of an object, those that lie nearest to a copy of the images."""
    depth = {path: len(os.path.commonpath([path, folder])) for path, _ in objects}
    return [(path, kind) for path, kind in objects if depth[path] == max(depth.values())]


def _as_refusal(fault: DataError, where: str) -> RefusedInput:
    return fault if isinstance(fault, RefusedInput) else RefusedInput(where, str(fault), "")


class _Reading:
    """What was read so far: figures and findings, never voxels."""

    def __init__(self) -> None:
        self.facts: list[CaseFacts] = []
        self.findings: list[AuditFinding] = []
        self.places: dict[str, str] = {}
        self.left_out: dict[str, int] = {}
        self.number = 0
        self._key = secrets.token_bytes(32)

    def refuse(self, refusal: RefusedInput, *, code: str, case_id: str = "") -> None:
        """A finding that keeps a case, or a file of no case, from being used."""
        self.findings.append(
            AuditFinding(
                weight=Weight.BLOCKING,
                code=refusal.code if refusal.code != "refused" else code,
                case_id=case_id,
                message=f"{refusal.where}: {refusal.reason}",
                remedy=refusal.remedy,
            )
        )

    def refuse_all(self, refusals: Sequence[RefusedInput]) -> None:
        """What a search for cases turned down."""
        for refusal in refusals:
            self.refuse(refusal, code="unreadable-file")

    def read_sources(self, sources: Sequence[Source], progress: Progress) -> None:
        """Cases that are no DICOM."""
        for done, source in enumerate(sources):
            progress("auditing cases", done + 1, len(sources))
            case_id = self._next(source.name, source.location)
            try:
                self._take(source.read(no_progress), case_id)
            except DataError as fault:
                self.refuse(_as_refusal(fault, source.name), code="unusable-case", case_id=case_id)

    def read_dicom(self, index: sqlite3.Connection, progress: Progress) -> None:
        """Every series with what refers to it."""
        keys = "SELECT DISTINCT series FROM slices ORDER BY series"
        (total,) = index.execute("SELECT count(DISTINCT series) FROM slices").fetchone()
        used: set[str] = set()
        for done, (key,) in enumerate(index.execute(keys)):
            progress("auditing series", done + 1, total)
            objects = _objects_of(index, key)
            used |= {str(path) for path, _ in objects}
            parts = _parts_of(index, key)
            for part in parts:
                mine = _nearest(objects, part[0].parent) if len(parts) > 1 else objects
                study = _study_of(index, part, mine)
                if isinstance(study, RefusedInput):
                    case_id = self._next(study.where, part[0].parent)
                    self.refuse(study, code="unusable-series", case_id=case_id)
                else:
                    case_id = self._next(study.series.name, part[0].parent)
                    self._read_study(study, case_id, [COPIED] if len(parts) > 1 else [])
        for path, kind in index.execute("SELECT path, kind FROM objects ORDER BY path"):
            if path not in used:
                self._refuse_stray(Path(path), kind)

    def _read_study(self, study: Study, case_id: str, findings: list[Finding]) -> None:
        try:
            try:
                draft = read_study(study, ImportOptions(), no_progress, digests=False)
            except RefusedInput as refusal:
                if refusal.code != "uneven-slices":
                    raise
                draft = read_study(
                    study, ImportOptions(allow_missing_slices=True), no_progress, digests=False
                )
                findings.append(Finding(code=refusal.code, message=refusal.reason, remedy=refusal.remedy))
            # Masks are made here: what is damaged in them shows only now.
            self._take(draft, case_id, findings)
        except DataError as fault:
            self.refuse(_as_refusal(fault, study.series.name), code="unusable-series", case_id=case_id)

    def _take(self, draft: CaseDraft, case_id: str, extra: Sequence[Finding] = ()) -> None:
        patient = blake2b(draft.patient_identity.encode(), key=self._key, digest_size=8).hexdigest()
        facts = compute_draft_facts(draft, case_id=case_id, patient=patient)
        self.facts.append(replace(facts, findings=(*facts.findings, *extra)))

    def _refuse_stray(self, path: Path, kind: str) -> None:
        refusal = RefusedInput(
            kind,
            "the image series that it was drawn on must be there; it is not.",
            "Export the images together with it.",
        )
        case_id = f"{kind} {sum(name.startswith(kind) for name in self.places) + 1}"
        self.places[case_id] = str(path)
        self.refuse(refusal, code="no-images", case_id=case_id)

    def _next(self, name: str, place: Path) -> str:
        self.number += 1
        case_id = f"{self.number:05d} {name}"
        self.places[case_id] = str(place)
        return case_id
