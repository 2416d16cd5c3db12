"""RTSTRUCT in: contours placed by patient coordinates, whatever images they claim to refer to."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from consilium.cases.case import MAX_NAME_LENGTH, Finding, State
from consilium.cases.draft import AnnotationDraft
from consilium.errors import GeometryError, RefusedInput
from consilium.geometry.contours import PlacementReport, place_polygons
from consilium.geometry.volume import Grid
from consilium.importers.dicom_file import file_sha256, read_dicom, reading
from consilium.types import FloatArray

CLINICAL_READER = "clinical"
AREAL_TYPES = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
WHERE = "RTSTRUCT"
MIN_TOKEN_LENGTH = 3
NO_STRUCTURES = frozenset(
    {"EXTERNAL", "SUPPORT", "FIXATION", "BOLUS", "MARKER", "ISOCENTER", "REGISTRATION", "DOSE_REGION"}
)
"""RT ROI Interpreted Types of what is nobody's organ or target: the body's outline, the couch, marks
(DICOM PS3.3 C.8.8.8.1)."""


@dataclass(frozen=True, kw_only=True)
class Roi:
    """One region of interest.

    Args:
        number: ROI Number.
        name: As it may be shown: without what identifies the patient.
        original_name: ROI Name as written. Private.
        frame_of_reference_uid: Of its coordinates; "" if not given.
        polygons_lps_mm: Closed planar contours, each (N, 3).
        other_types: Number of contours that enclose no area: points and open lines.
        referenced_sop_uids: Of the images that the contours name.
        fault: Why the contours cannot be read; "" if they can.
        interpreted_type: RT ROI Interpreted Type; "" if not given.
    """

    number: int
    name: str
    original_name: str
    frame_of_reference_uid: str
    polygons_lps_mm: tuple[FloatArray, ...]
    other_types: int
    referenced_sop_uids: frozenset[str]
    fault: str = ""
    interpreted_type: str = ""


@dataclass(frozen=True, kw_only=True)
class StructureSet:
    """What an RTSTRUCT holds.

    Args:
        rois: In the file's order.
        referenced_series_uids: Series it was drawn on.
        sha256: Digest of the file.
        patient_identity: Patient ID; "" if not given. Private.
        findings: About the file as a whole.
    """

    rois: tuple[Roi, ...]
    referenced_series_uids: frozenset[str]
    sha256: str
    patient_identity: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlacedStructures:
    """An RTSTRUCT on a series: what to hand to the dataset.

    Args:
        annotations: One per ROI.
        findings: What a person should know.
        original_names: Public name -> ROI Name where it had to be changed. Private.
    """

    annotations: tuple[AnnotationDraft, ...]
    findings: tuple[Finding, ...]
    original_names: dict[str, str]


def read_rtstruct(path: Path) -> StructureSet:
    """Read the ROIs of an RTSTRUCT.

    Raises:
        RefusedInput: If the file is damaged, hostile or no RTSTRUCT.

    Source:
        DICOM PS3.3 C.8.8.5 (structure set), C.8.8.6 (ROI contour).
    """
    dataset = read_dicom(path, where=WHERE)
    with reading(WHERE):
        if not dataset.get("StructureSetROISequence"):
            raise RefusedInput(
                WHERE,
                "must have a Structure Set ROI Sequence; it has none.",
                "Export the structure set again.",
            )
        contours: dict[int, list[Dataset]] = {}
        for item in dataset.get("ROIContourSequence") or ():
            contours.setdefault(int(item.ReferencedROINumber), []).extend(item.get("ContourSequence") or ())
        types = {
            int(o.ReferencedROINumber): str(o.get("RTROIInterpretedType") or "").strip().upper()
            for o in dataset.get("RTROIObservationsSequence") or ()
        }
        patient = str(dataset.get("PatientID") or "").strip()
        tokens = _identifying_tokens(dataset)
        series = frozenset(_referenced_series(dataset))
        rois = []
        taken: set[str] = set()
        for item in dataset.StructureSetROISequence:
            number = int(item.ROINumber)
            original = str(item.get("ROIName", "") or "")
            name = _public_name(original, number, tokens, taken)
            taken.add(name)
            roi = _read_roi(item, contours.get(number, ()), number, (name, original))
            rois.append(replace(roi, interpreted_type=types.get(number, "")))
    return StructureSet(
        rois=tuple(rois),
        referenced_series_uids=series,
        sha256=file_sha256(path),
        patient_identity=patient,
    )


def annotations_from_rtstruct(
    structure_set: StructureSet,
    grid: Grid,
    *,
    sop_uids: Iterable[str],
    frame_of_reference_uid: str,
    reader: str = CLINICAL_READER,
) -> PlacedStructures:
    """Place every ROI on a series' grid by its coordinates.

    A ROI without any contour is *unknown*, not absent: planning systems keep empty ROIs from templates.

    Args:
        structure_set: From `read_rtstruct`.
        grid: Of the series.
        sop_uids: Of the series' images; contours that name others are a finding.
        frame_of_reference_uid: Of the series.
        reader: Pseudonym of who drew.

    Raises:
        RefusedInput: If no ROI lies in the series' frame of reference.
    """
    here = [
        roi
        for roi in structure_set.rois
        if not roi.frame_of_reference_uid
        or not frame_of_reference_uid
        or roi.frame_of_reference_uid == frame_of_reference_uid
    ]
    if not here:
        raise RefusedInput(
            WHERE,
            "must lie in the frame of reference of its CT; all its ROIs lie in another one.",
            "Register the images in the planning system, or export the CT on which it was drawn.",
            code="wrong-frame",
        )
    findings = list(structure_set.findings)
    elsewhere = len(structure_set.rois) - len(here)
    if elsewhere:
        findings.append(
            Finding(
                code="other-frame-of-reference",
                message=f"{elsewhere} ROIs lie in another frame of reference and were left out.",
                remedy="Export them on the CT on which they were drawn.",
            )
        )
    made_by_machine = [roi for roi in here if roi.interpreted_type in NO_STRUCTURES]
    if made_by_machine:
        kinds = ", ".join(sorted({roi.interpreted_type for roi in made_by_machine}))
        findings.append(
            Finding(
                code="no-structure",
                message=f"{len(made_by_machine)} ROIs are no organs or targets ({kinds}) and were left out.",
                remedy="If one is, give it another RT ROI Interpreted Type in the planning system.",
            )
        )
        here = [roi for roi in here if roi.interpreted_type not in NO_STRUCTURES]
    findings += _missing_references(here, frozenset(sop_uids))
    annotations = []
    for roi in here:
        annotation, found = _place(roi, grid, reader)
        annotations.append(annotation)
        findings += found
    renamed = {roi.name: roi.original_name for roi in here if roi.name != roi.original_name}
    if renamed:
        findings.append(
            Finding(
                code="renamed-structures",
                message=f"{len(renamed)} ROI names were changed: {', '.join(sorted(renamed))}.",
                remedy="They were empty, too long, double, or held what identifies the patient; the original "
                "names are kept in the private part.",
            )
        )
    return PlacedStructures(annotations=tuple(annotations), findings=tuple(findings), original_names=renamed)


def parse_decimals(text: bytes) -> FloatArray:
    """Values of a decimal string as pydicom gives them, without making an object for each.

    Raises:
        ValueError: If a part is no number.
    """
    return np.array(text.strip(b" \0").split(b"\\"), dtype="S32").astype(np.float64)


def _read_roi(item: Dataset, contours: Iterable[Dataset], number: int, names: tuple[str, str]) -> Roi:
    polygons: list[FloatArray] = []
    references: set[str] = set()
    others, fault = 0, ""
    for part in contours:
        for image in part.get("ContourImageSequence") or ():
            references.add(str(image.get("ReferencedSOPInstanceUID", "")))
        if str(part.get("ContourGeometricType", "CLOSED_PLANAR")) not in AREAL_TYPES:
            others += 1
            continue
        points, fault_here = _points(part)
        fault = fault or fault_here
        if points is not None:
            polygons.append(points)
    return Roi(
        number=number,
        name=names[0],
        original_name=names[1],
        frame_of_reference_uid=str(item.get("ReferencedFrameOfReferenceUID", "") or ""),
        polygons_lps_mm=tuple(polygons),
        other_types=others,
        referenced_sop_uids=frozenset(references - {""}),
        fault=fault,
    )


def _points(part: Dataset) -> tuple[FloatArray | None, str]:
    """The points (N, 3) of a contour, or None and what is wrong with it."""
    raw: Any = part.get_item("ContourData") if "ContourData" in part else None
    if raw is None or not raw.value:
        return np.zeros((0, 3)), ""
    try:
        if isinstance(raw.value, bytes):
            values = parse_decimals(raw.value)
        else:
            values = np.array(raw.value, dtype=np.float64).reshape(-1)
    except ValueError:
        return None, "a coordinate is no number"
    if values.size % 3:
        return None, f"a contour has {values.size} coordinates, which is no multiple of 3"
    if not np.isfinite(values).all():
        return None, "a coordinate is not finite"
    return values.reshape(-1, 3), ""


def _place(roi: Roi, grid: Grid, reader: str) -> tuple[AnnotationDraft, list[Finding]]:
    unknown = AnnotationDraft(structure=roi.name, reader=reader, state=State.UNKNOWN)
    if roi.fault:
        return unknown, [_finding("unreadable-contours", roi, f"{roi.fault}; the structure is unknown here.")]
    if not roi.polygons_lps_mm:
        what = f"{roi.other_types} points or open lines and no" if roi.other_types else "no"
        return unknown, [_finding("no-contours", roi, f"has {what} closed contour; it counts as unknown.")]
    # Combined by exclusive or, a contour that is written twice would cancel itself.
    distinct = list({polygon.tobytes(): polygon for polygon in roi.polygons_lps_mm}.values())
    try:
        placed = place_polygons(distinct, grid)
    except GeometryError as error:
        return unknown, [_finding("misplaced-contours", roi, f"{error} The structure is unknown here.")]
    if not len(placed.slices):
        message = "no contour encloses an area within the image's slices; the structure is unknown here."
        return unknown, [_finding("outside-image", roi, message)]
    draft = AnnotationDraft(structure=roi.name, reader=reader, mask=placed.fill)
    findings = _placement_findings(roi, placed.report)
    repeated = len(roi.polygons_lps_mm) - len(distinct)
    if repeated:
        message = f"{repeated} contours repeat another one point by point and count once."
        findings.append(_finding("repeated-contours", roi, message))
    return draft, findings


def _placement_findings(roi: Roi, report: PlacementReport) -> list[Finding]:
    texts = [
        (
            "outside-image",
            report.outside_slices,
            "contours lie beyond the first or last slice and were left out",
        ),
        (
            "outside-image",
            report.outside_plane,
            "contours reach beyond the image's edge and were cut off there",
        ),
        ("without-area", report.without_area, "contours have fewer than 3 points and cover nothing"),
        (
            "superseded-contours",
            report.superseded,
            "contours lie closer than the slices; the nearest were taken",
        ),
        ("gaps", report.slices_without, "slices between its first and last have no contour and stay empty"),
    ]
    findings = [_finding(code, roi, f"{count} {text}.") for code, count, text in texts if count]
    if report.between_slices:
        message = (
            f"{report.between_slices} contours lie up to {report.largest_offset_mm:.2f} mm from the nearest "
            "slice and were counted to it."
        )
        findings.append(_finding("between-slices", roi, message))
    return findings


def _finding(code: str, roi: Roi, message: str) -> Finding:
    return Finding(
        code=code, message=f"{roi.name!r}: {message}", remedy="Look at this structure in the planning system."
    )


def _missing_references(rois: Sequence[Roi], sop_uids: frozenset[str]) -> list[Finding]:
    named = frozenset().union(*(roi.referenced_sop_uids for roi in rois))
    missing = len(named - sop_uids)
    if not missing:
        return []
    return [
        Finding(
            code="missing-references",
            message=f"{missing} of {len(named)} images that the contours name are not in the series; the "
            "contours were placed by their coordinates.",
            remedy="Usual after a re-export of the images. Look whether the contours fit.",
        )
    ]


def _referenced_series(dataset: Dataset) -> Iterable[str]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield str(series.get("SeriesInstanceUID", ""))


def _identifying_tokens(dataset: Dataset) -> frozenset[str]:
    """Words that name the patient, lower case."""
    text = " ".join(str(dataset.get(k, "")) for k in ("PatientName", "PatientID", "PatientBirthDate"))
    words = re.split(r"[^\w]+", text.lower().replace("^", " ").replace("_", " "))
    return frozenset(word for word in words if len(word) >= MIN_TOKEN_LENGTH)


def _public_name(original: str, number: int, tokens: frozenset[str], taken: set[str]) -> str:
    name = "".join(c for c in " ".join(original.split()) if c.isprintable())[:MAX_NAME_LENGTH].strip()
    words = set(re.split(r"[^\w]+|_", name.lower()))
    digits = re.sub(r"\D", " ", name).split()
    if not name or words & tokens or any(len(run) >= 6 for run in digits):
        name = f"Structure {number}"
    base, count = name, 1
    while name in taken:
        count += 1
        name = f"{base[: MAX_NAME_LENGTH - 5]} ({count})"
    return name
