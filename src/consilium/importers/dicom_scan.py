"""What DICOM a folder holds: image series, and the objects that refer to them, from headers alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from consilium.cases.case import Finding
from consilium.errors import RefusedInput
from consilium.importers.attributes import Attributes, read_attributes
from consilium.importers.dicom_file import EXPORT_AGAIN, is_dicom, short_uid
from consilium.importers.dicom_series import SeriesHeader, SliceHeader
from consilium.importers.slice_headers import (
    SLICE_KEYWORDS,
    Identity,
    frame_headers,
    read_identity,
    slice_header,
)
from consilium.types import Progress, no_progress

SINGLE_FRAME = frozenset(map(str, (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)))
MULTI_FRAME = frozenset(
    map(
        str,
        (
            EnhancedCTImageStorage,
            EnhancedMRImageStorage,
            LegacyConvertedEnhancedCTImageStorage,
            LegacyConvertedEnhancedMRImageStorage,
            LegacyConvertedEnhancedPETImageStorage,
        ),
    )
)
LABELMAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = str(RTStructureSetStorage)
SEGMENTATIONS = frozenset(map(str, (SegmentationStorage, LABELMAP_SEGMENTATION)))
DICOMDIR = "1.2.840.10008.1.3.10"

SCAN_TAGS = frozenset(
    number
    for number in map(tag_for_keyword, ["ImageType", "RescaleType", *SLICE_KEYWORDS])
    if number is not None
)


@dataclass(frozen=True, kw_only=True)
class DicomObject:
    """A file that is no image slice but may say something about a series: an RTSTRUCT or SEG."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    patient_identity: str
    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str


@dataclass(frozen=True, kw_only=True)
class DicomScan:
    """What a folder holds.

    Args:
        series: Image series that can be, in the order of their UIDs.
        objects: RTSTRUCT and SEG.
        refused: Files and series that cannot be.
        left_out: Reason -> number of files that are none of the importer's business.
    """

    series: tuple[SeriesHeader, ...]
    objects: tuple[DicomObject, ...]
    refused: tuple[RefusedInput, ...]
    left_out: dict[str, int] = field(default_factory=dict)


class LeftOut(Exception):
    """A readable file that is not to be imported; the text says why."""


def scan_dicom(
    paths: Iterable[Path], *, modalities: Sequence[str] = ("CT",), progress: Progress = no_progress
) -> DicomScan:
    """Read the headers of files and put slices together to series.

    Files that are no DICOM are passed over. DICOMDIR, localizers, secondary captures, dose screens and images
    of other modalities are left out, and counted by reason.
    """
    files = list(paths)
    groups: dict[str, list[tuple[Identity, SliceHeader]]] = {}
    objects: list[DicomObject] = []
    refused: list[RefusedInput] = []
    left_out: Counter[str] = Counter()
    for k, path in enumerate(files):
        progress("reading headers", k + 1, len(files))
        try:
            found = read_object(path, modalities)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except RefusedInput as refusal:
            refused.append(refusal)
        else:
            if isinstance(found, DicomObject):
                objects.append(found)
            elif found is not None:
                identity, headers = found
                key = identity.series_instance_uid or f"{path.parent}\n{identity.frame_of_reference_uid}"
                group = groups.setdefault(key, [])
                group.extend((identity, header) for header in headers)
    series: list[SeriesHeader] = []
    for _, entries in sorted(groups.items()):
        try:
            series.append(_series(entries))
        except RefusedInput as refusal:
            refused.append(refusal)
    return DicomScan(
        series=tuple(series),
        objects=tuple(objects),
        refused=tuple(_merged(refused)),
        left_out=dict(left_out),
    )


def read_object(
    path: Path, modalities: Sequence[str] = ("CT",)
) -> tuple[Identity, list[SliceHeader]] | DicomObject | None:
    """The slices of a file, or the object in it; None if it is no DICOM.

    Raises:
        LeftOut: If it is readable and not to be imported.
        RefusedInput: If it cannot be used.
    """
    if not is_dicom(path):
        return None
    attributes = read_attributes(path, SCAN_TAGS)
    _check_wanted(attributes, modalities)
    if attributes.sop_class_uid == RTSTRUCT or attributes.sop_class_uid in SEGMENTATIONS:
        return _object(path, attributes)
    identity = read_identity(attributes)
    attributes = replace(attributes, where=_name(identity))
    if attributes.pixel_data_at is None:
        raise RefusedInput(
            attributes.where, "an image must have PixelData; a file has none.", "Copy or export it again."
        )
    if identity.sop_class_uid in MULTI_FRAME:
        return identity, frame_headers(path, attributes)
    return identity, [slice_header(path, attributes)]


def _check_wanted(attributes: Attributes, modalities: Sequence[str]) -> None:
    sop_class = attributes.sop_class_uid
    if sop_class == DICOMDIR:
        raise LeftOut("DICOMDIR (the files are found without it)")
    if sop_class == RTSTRUCT or sop_class in SEGMENTATIONS:
        return
    if not sop_class:
        raise RefusedInput(
            "DICOM file",
            "must say what kind of object it is (SOP Class UID); it does not: it is cut off or damaged.",
            EXPORT_AGAIN,
        )
    if sop_class not in SINGLE_FRAME | MULTI_FRAME:
        raise LeftOut(f"{_class_name(sop_class)} (no volume of CT slices)")
    modality = attributes.text("Modality")
    if modality not in modalities:
        raise LeftOut(f"modality {modality[:16] or 'not given'} (asked for: {', '.join(modalities)})")
    if "LOCALIZER" in attributes.text("ImageType").upper().split("\\"):
        raise LeftOut("localizer (no axial slice)")
    unit = attributes.text("RescaleType").upper()
    if modality == "CT" and unit not in ("", "HU", "US", "UNSPECIFIED"):
        raise LeftOut(f"CT in {unit[:16]}, not in Hounsfield units")


def _class_name(sop_class: str) -> str:
    """The standard's name of a kind of object; what is no name of the standard is not quoted."""
    name = UID(sop_class).name
    return "private or unknown kind of object" if name == sop_class else name


def _name(identity: Identity) -> str:
    uid = identity.series_instance_uid
    return f"series {short_uid(uid)}" if uid else "series without UID"


def _object(path: Path, attributes: Attributes) -> DicomObject:
    kind = "RTSTRUCT" if attributes.sop_class_uid == RTSTRUCT else "DICOM SEG"
    identity = read_identity(replace(attributes, where=kind))
    return DicomObject(
        path=path,
        sop_class_uid=identity.sop_class_uid,
        sop_instance_uid=attributes.uid("SOPInstanceUID"),
        patient_identity=identity.patient_identity,
        series_instance_uid=identity.series_instance_uid,
        study_instance_uid=identity.study_instance_uid,
        frame_of_reference_uid=identity.frame_of_reference_uid,
    )


def _series(entries: Sequence[tuple[Identity, SliceHeader]]) -> SeriesHeader:
    """Put the slices of one Series Instance UID together; they must agree on everything else."""
    first = entries[0][0]
    where = _name(first)
    for keyword, value in vars(first).items():
        others = {vars(identity)[keyword] for identity, _ in entries} - {value}
        if others:
            raise RefusedInput(
                where,
                f"all slices of a series must have one {keyword.replace('_', ' ')}; found {len(others) + 1}.",
                "Series are mixed up under one UID: export them again from their source.",
                code="mixed-identity",
            )
    headers = tuple(header for _, header in entries)
    named, findings = _with_uids(first, headers)
    return SeriesHeader(**vars(named), slices=headers, findings=findings)


def _with_uids(identity: Identity, headers: Sequence[SliceHeader]) -> tuple[Identity, tuple[Finding, ...]]:
    """Stand-ins, made from the instances' UIDs, for series and study UIDs that were taken away."""
    missing = [name for name in ("series", "study") if not vars(identity)[f"{name}_instance_uid"]]
    if not missing:
        return identity, ()
    instances = "\n".join(sorted(header.sop_instance_uid for header in headers))
    stand_ins = {
        f"{name}_instance_uid": f"2.25.{int(sha256(f'{name} {instances}'.encode()).hexdigest()[:32], 16)}"
        for name in missing
    }
    finding = Finding(
        code="missing-uids",
        message=f"the source has no UID of its {' and '.join(missing)}; one made from its instances is used.",
        remedy="Exports refer to that one. Import from the original source if they must go back to it.",
    )
    return replace(identity, **stand_ins), (finding,)


def _merged(refusals: Sequence[RefusedInput]) -> list[RefusedInput]:
    """One refusal for many files with one fault."""
    counts = Counter((r.where, r.reason, r.remedy, r.code) for r in refusals)
    return [
        RefusedInput(f"{where} ({count} files)" if count > 1 else where, reason, remedy, code=code)
        for (where, reason, remedy, code), count in counts.items()
    ]
