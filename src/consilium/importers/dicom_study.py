"""A CT series with what refers to it (RTSTRUCT, SEG, LIDC readings) as a case."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from consilium.cases.case import Finding
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.errors import RefusedInput
from consilium.geometry.volume import Grid
from consilium.importers.dicom_file import file_sha256, read_dicom, reading, short_uid
from consilium.importers.dicom_scan import RTSTRUCT, DicomObject, DicomScan, scan_dicom
from consilium.importers.dicom_seg import annotations_from_seg
from consilium.importers.dicom_series import SeriesHeader, read_series, series_sha256
from consilium.importers.lidc import annotations_from_lidc
from consilium.importers.rtstruct import StructureSet, annotations_from_rtstruct, read_rtstruct
from consilium.importers.slice_order import SlicePlan
from consilium.importers.sources import FoundSources, ImportOptions, Source
from consilium.types import Progress

PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
SCANNER_TEXTS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
SCANNER_NUMBERS = ("KVP", "SliceThickness")
"""The allow-list: no date, no place, no serial number, no free text of a person."""
MAX_SCANNER_TEXT = 64
SHORT_STRINGS, MAX_SHORT_STRING = ("StudyID", "AccessionNumber"), 16


@dataclass(frozen=True)
class Study:
    """A series and the files that say something about it."""

    series: SeriesHeader
    structure_sets: tuple[Path, ...] = ()
    segmentations: tuple[Path, ...] = ()
    lidc_readings: tuple[Path, ...] = ()


@dataclass
class _Gathered:
    """What was placed on the series so far."""

    annotations: list[AnnotationDraft] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)


def find_dicom(paths: Sequence[Path], options: ImportOptions, progress: Progress) -> FoundSources:
    """Every image series among the files, with the objects that refer to it.

    An RTSTRUCT or SEG belongs to the series that it names, else to the one series of its frame of reference.
    """
    scan = scan_dicom(paths, modalities=options.modalities, progress=progress)
    assigned, refused = _assign(scan)
    readings: dict[Path, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() == ".xml" and is_lidc(path):
            readings.setdefault(path.parent, []).append(path)
    sources = []
    for series in scan.series:
        mine = assigned.get(series.series_instance_uid, [])
        folders = sorted({path.parent for path in series.paths})
        study = Study(
            series=series,
            structure_sets=tuple(sorted(o.path for o in mine if o.sop_class_uid == RTSTRUCT)),
            segmentations=tuple(sorted(o.path for o in mine if o.sop_class_uid != RTSTRUCT)),
            lidc_readings=tuple(x for folder in folders for x in sorted(readings.get(folder, ()))),
        )
        sources.append(_source(study, options))
    return FoundSources(sources=tuple(sources), refused=(*scan.refused, *refused), left_out=scan.left_out)


def _assign(scan: DicomScan) -> tuple[dict[str, list[DicomObject]], list[RefusedInput]]:
    assigned: dict[str, list[DicomObject]] = {}
    refused: list[RefusedInput] = []
    for item in scan.objects:
        try:
            series = _series_of(item, scan.series)
        except RefusedInput as refusal:
            refused.append(refusal)
        else:
            assigned.setdefault(series.series_instance_uid, []).append(item)
    return assigned, refused


def _series_of(item: DicomObject, series: Sequence[SeriesHeader]) -> SeriesHeader:
    where = "RTSTRUCT" if item.sop_class_uid == RTSTRUCT else "DICOM SEG"
    named, frames = references_of(item, where)
    for one in series:
        if one.series_instance_uid in named:
            return one
    frames = frames | {item.frame_of_reference_uid} - {""}
    fitting = [one for one in series if one.frame_of_reference_uid in frames]
    if len(fitting) == 1:
        return fitting[0]
    uids = ", ".join(sorted(map(short_uid, named))[:3]) or "none"
    raise RefusedInput(
        where,
        f"the image series that it was drawn on must be there; it names {uids}, and {len(fitting)} of "
        f"{len(series)} series share its frame of reference.",
        "Export the images together with it, and one series per frame of reference.",
    )


def references_of(item: DicomObject, where: str) -> tuple[set[str], set[str]]:
    """Series and frames of reference that an RTSTRUCT or SEG names.

    Of an RTSTRUCT that names several frames of reference (registered images), those series that lie where a
    ROI was drawn.
    """
    tags = ["ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "StructureSetROISequence"]
    dataset = read_dicom(item.path, tags=tags, where=where)
    with reading(where):
        frames = list(dataset.get("ReferencedFrameOfReferenceSequence") or ())
        rois = list(dataset.get("StructureSetROISequence") or ())
        drawn = {str(roi.get("ReferencedFrameOfReferenceUID", "")) for roi in rois}
        where_drawn = [f for f in frames if str(f.get("FrameOfReferenceUID", "")) in drawn] or frames
        studies = [study for frame in where_drawn for study in frame.get("RTReferencedStudySequence") or ()]
        named = [s for study in studies for s in study.get("RTReferencedSeriesSequence") or ()]
        named += list(dataset.get("ReferencedSeriesSequence") or ())
        of = {str(f.get("FrameOfReferenceUID", "")) for f in frames}
        return {str(s.get("SeriesInstanceUID", "")) for s in named}, (of | drawn) - {""}


def is_lidc(path: Path) -> bool:
    """Whether an XML file holds LIDC-IDRI readings."""
    try:
        with path.open("rb") as file:
            return b"LidcReadMessage" in file.read(4096)
    except OSError:
        return False


def _source(study: Study, options: ImportOptions) -> Source:
    def digests() -> dict[str, str]:
        return _digests(study, options)

    def read(progress: Progress) -> CaseDraft:
        return read_study(study, options, progress)

    return Source(
        name=study.series.name,
        location=study.series.paths[0].parent,
        identity=study.series.series_instance_uid,
        digests=digests,
        read=read,
    )


def read_study(
    study: Study, options: ImportOptions, progress: Progress, *, digests: bool = True
) -> CaseDraft:
    """Read the volume of a series and place what was drawn on it.

    Args:
        study: The files.
        options: What a person decides.
        progress: Told about every slice.
        digests: Whether to read everything once more for its digests, as an import needs them.

    Raises:
        RefusedInput: If the series or a file that refers to it cannot be used.
    """
    series = study.series
    plan = series.plan(allow_missing_slices=options.allow_missing_slices)
    found = _Gathered()
    _add_structure_sets(study, plan.grid, found)
    _add_segmentations(study, plan.grid, found)
    instances: tuple[Any, ...] = ()
    if study.lidc_readings:
        uids = [series.slices[s.lower].sop_instance_uid if s.is_stored else "" for s in plan.sources]
        readings = annotations_from_lidc(
            study.lidc_readings, uids, plan.grid, series_instance_uid=series.series_instance_uid
        )
        found.annotations += readings.annotations
        found.findings += readings.findings
        instances = readings.instances
    image, findings = read_series(
        series, allow_missing_slices=options.allow_missing_slices, progress=progress
    )
    first = read_dicom(
        series.paths[0],
        tags=[*PATIENT, *STUDY, *SCANNER_TEXTS, *SCANNER_NUMBERS, "PositionReferenceIndicator"],
        where=series.name,
    )
    if not series.patient_identity:
        findings = (*findings, NO_PATIENT)
    return CaseDraft(
        source_identity=series.series_instance_uid,
        patient_identity=series.patient_identity or series.study_instance_uid,
        image=image,
        modality=series.modality,
        annotations=tuple(found.annotations),
        importer=_kind(study),
        source_sha256=_digests(study, options) if digests else {},
        scanner=_scanner(first, series.name),
        instances=instances,
        findings=(*findings, *found.findings),
        private=_private_record(series, plan, first, found.names),
    )


def private_record_of(series: SeriesHeader) -> dict[str, Any]:
    """The private record of a series that is contoured without being imported.

    Raises:
        RefusedInput: If the series does not lie on a regular grid, or its first file cannot be read.
    """
    tags = [*PATIENT, *STUDY, "PositionReferenceIndicator"]
    first = read_dicom(series.paths[0], tags=tags, where=series.name)
    return _private_record(series, series.plan(), first, {})


NO_PATIENT = Finding(
    code="no-patient-id",
    message="the source has no patient id; the study stands for the patient.",
    remedy="If a patient has several studies, their cases may end up on both sides of a split.",
)


COPIED_STRUCTURES = Finding(
    code="copied-structures",
    message="a structure set is there twice, byte by byte; it counts once.",
    remedy="Nothing; or remove the copy.",
)


def _kind(study: Study) -> str:
    parts = ["dicom-series"]
    parts += ["rtstruct"] if study.structure_sets else []
    parts += ["seg"] if study.segmentations else []
    parts += ["lidc"] if study.lidc_readings else []
    return "+".join(parts)


def _reader(base: str, index: int) -> str:
    return base if index == 0 else f"{base}-{index + 1}"


def _add_structure_sets(study: Study, grid: Grid, found: _Gathered) -> None:
    seen: set[str] = set()
    for index, path in enumerate(study.structure_sets):
        reader = _reader("clinical", index)
        try:
            structure_set = read_rtstruct(path)
            if structure_set.sha256 in seen:
                found.findings.append(COPIED_STRUCTURES)
                continue
            seen.add(structure_set.sha256)
            _check_patient(structure_set, study.series)
            placed = annotations_from_rtstruct(
                structure_set,
                grid,
                sop_uids=[s.sop_instance_uid for s in study.series.slices],
                frame_of_reference_uid=study.series.frame_of_reference_uid,
                reader=reader,
            )
        except RefusedInput as refusal:
            found.findings.append(_left_out(refusal))
            continue
        found.annotations += placed.annotations
        found.findings += placed.findings
        if placed.original_names:
            found.names[reader] = placed.original_names


def _check_patient(structure_set: StructureSet, series: SeriesHeader) -> None:
    theirs, its = structure_set.patient_identity, series.patient_identity
    if theirs and its and theirs != its:
        raise RefusedInput(
            "RTSTRUCT",
            "must be of the patient of its CT; it has another patient id.",
            "Find out whose contours these are, and export them with their own CT.",
            code="wrong-patient",
        )


def _left_out(refusal: RefusedInput) -> Finding:
    """One structure set that cannot be used does not cost the case its image and its other contours."""
    code = f"{refusal.code}-structures" if refusal.code == "refused" else refusal.code
    message = f"{refusal.where} was left out: {refusal.reason}"
    return Finding(code=code, message=message, remedy=refusal.remedy)


def _add_segmentations(study: Study, grid: Grid, found: _Gathered) -> None:
    for index, path in enumerate(study.segmentations):
        try:
            annotations, findings = annotations_from_seg(
                path,
                grid,
                frame_of_reference_uid=study.series.frame_of_reference_uid,
                reader=_reader("segmentation", index),
            )
        except RefusedInput as refusal:
            found.findings.append(_left_out(refusal))
            continue
        found.annotations += annotations
        found.findings += findings


def _digests(study: Study, options: ImportOptions) -> dict[str, str]:
    digests = {"series": series_sha256(study.series)}
    for role, paths in (
        ("rtstruct", study.structure_sets),
        ("seg", study.segmentations),
        ("lidc", study.lidc_readings),
    ):
        if paths:
            joined = "".join(sorted(file_sha256(path) for path in paths))
            digests[role] = hashlib.sha256(joined.encode()).hexdigest()
    if options.allow_missing_slices:
        digests["options"] = hashlib.sha256(b"allow-missing-slices").hexdigest()
    return digests


def _scanner(dataset: Dataset, where: str) -> dict[str, str | float]:
    facts: dict[str, str | float] = {}
    with reading(where):
        for keyword in SCANNER_TEXTS:
            value = dataset.get(keyword)
            value = value if isinstance(value, str) or value is None else "\\".join(map(str, value))
            text = "".join(c for c in str(value or "") if c.isprintable()).strip()
            if text:
                facts[keyword] = text[:MAX_SCANNER_TEXT]
    for keyword in SCANNER_NUMBERS:
        try:
            with reading(where):
                facts[keyword] = float(dataset[keyword].value)
        except RefusedInput:
            continue
    return facts


def _study_text(first: Dataset, keyword: str) -> str:
    """An attribute of the study; "" where a short string is too long to be written again (PS3.5 6.2)."""
    text = str(first.get(keyword) or "")
    return "" if keyword in SHORT_STRINGS and len(text) > MAX_SHORT_STRING else text


def _private_record(
    series: SeriesHeader, plan: SlicePlan, first: Dataset, names: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What the clinical exporters need; only stored slices have an instance."""
    stored = [series.slices[source.lower] for source in plan.sources if source.is_stored]
    with reading(series.name):
        record = {
            "kind": "dicom",
            "patient": {keyword: str(first.get(keyword) or "") for keyword in PATIENT},
            "study": {
                "StudyInstanceUID": series.study_instance_uid,
                **{keyword: _study_text(first, keyword) for keyword in STUDY},
            },
            "series": {
                "SeriesInstanceUID": series.series_instance_uid,
                "FrameOfReferenceUID": series.frame_of_reference_uid,
                "PositionReferenceIndicator": str(first.get("PositionReferenceIndicator") or ""),
                "Modality": series.modality,
                "SOPClassUID": series.sop_class_uid,
            },
            "slices": [
                {"sop_instance_uid": s.sop_instance_uid, "position_lps_mm": list(s.position_lps_mm)}
                for s in stored
            ],
        }
    if names:
        record["structure_names"] = {reader: dict(of) for reader, of in names.items()}
    return record
