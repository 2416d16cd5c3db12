"""What DICOM a folder holds: image series, and the objects that refer to them, from headers alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
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

from consilium.errors import RefusedInput
from consilium.importers.dicom_file import PIXEL_DATA, is_dicom, read_header, reading, short_uid
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
AFTER_IMAGE_ATTRIBUTES = 0x30000000
"""Attributes of the image plane and its pixels stand in groups 0008 to 0028; RT comes later."""

SCAN_KEYWORDS = ["SOPClassUID", "ImageType", "RescaleType", "FrameOfReferenceUID", *SLICE_KEYWORDS]
SCAN_TAGS = [number for number in map(tag_for_keyword, SCAN_KEYWORDS) if number is not None]


@dataclass(frozen=True, kw_only=True)
class DicomObject:
    """A file that is no image slice but may say something about a series: an RTSTRUCT or SEG."""

    path: Path
    sop_class_uid: str
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
            found = _read_one(path, modalities)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except RefusedInput as refusal:
            refused.append(refusal)
        else:
            if isinstance(found, DicomObject):
                objects.append(found)
            elif found is not None:
                identity, headers = found
                group = groups.setdefault(identity.series_instance_uid, [])
                group.extend((identity, header) for header in headers)
    series: list[SeriesHeader] = []
    for _, entries in sorted(groups.items()):
        try:
            series.append(_series(entries))
        except RefusedInput as refusal:
            refused.append(refusal)
    return DicomScan(
        series=tuple(series), objects=tuple(objects), refused=tuple(refused), left_out=dict(left_out)
    )


def _read_one(
    path: Path, modalities: Sequence[str]
) -> tuple[Identity, list[SliceHeader]] | DicomObject | None:
    """The slices of a file, or the object in it; None if it is no DICOM."""
    if not is_dicom(path):
        return None
    dataset, position, stopped = read_header(path, tags=SCAN_TAGS, stop_at=AFTER_IMAGE_ATTRIBUTES)
    with reading("DICOM file"):
        sop_class = str(dataset.get("SOPClassUID", ""))
        if not sop_class and "MediaStorageSOPClassUID" in dataset.file_meta:
            sop_class = str(dataset.file_meta.MediaStorageSOPClassUID)
    _check_wanted(dataset, sop_class, modalities)
    if sop_class == RTSTRUCT or sop_class in SEGMENTATIONS:
        return _object(path, dataset, sop_class)
    identity = read_identity(dataset, "DICOM image")
    where = f"series {short_uid(identity.series_instance_uid)}"
    if stopped != PIXEL_DATA:
        _, position, stopped = read_header(path, tags=["SOPClassUID"], where=where)
    if stopped != PIXEL_DATA:
        raise RefusedInput(
            where, "an image must have PixelData; a file has none.", "Copy or export it again."
        )
    if sop_class in MULTI_FRAME:
        return identity, frame_headers(path, dataset, position, where=where)
    return identity, [slice_header(path, dataset, position, where=where)]


def _check_wanted(dataset: Dataset, sop_class: str, modalities: Sequence[str]) -> None:
    if sop_class == DICOMDIR or "DirectoryRecordSequence" in dataset:
        raise LeftOut("DICOMDIR (the files are found without it)")
    if sop_class == RTSTRUCT or sop_class in SEGMENTATIONS:
        return
    if sop_class not in SINGLE_FRAME | MULTI_FRAME:
        raise LeftOut(f"{UID(sop_class).name if sop_class else 'no SOP class'} (no volume of CT slices)")
    with reading("DICOM file"):
        modality = str(dataset.get("Modality", ""))
        image_type = [str(part).upper() for part in dataset.get("ImageType") or ()]
        rescale_type = str(dataset.get("RescaleType") or "HU").upper()
    if modality not in modalities:
        raise LeftOut(f"modality {modality or 'not given'} (asked for: {', '.join(modalities)})")
    if "LOCALIZER" in image_type:
        raise LeftOut("localizer (no axial slice)")
    if modality == "CT" and rescale_type not in ("HU", "US", "UNSPECIFIED"):
        raise LeftOut(f"CT in {rescale_type[:16]}, not in Hounsfield units")


def _object(path: Path, dataset: Dataset, sop_class: str) -> DicomObject:
    identity = read_identity(dataset, "RTSTRUCT" if sop_class == RTSTRUCT else "DICOM SEG")
    return DicomObject(
        path=path,
        sop_class_uid=sop_class,
        series_instance_uid=identity.series_instance_uid,
        study_instance_uid=identity.study_instance_uid,
        frame_of_reference_uid=identity.frame_of_reference_uid,
    )


def _series(entries: Sequence[tuple[Identity, SliceHeader]]) -> SeriesHeader:
    """Put the slices of one Series Instance UID together; they must agree on everything else."""
    first = entries[0][0]
    where = f"series {short_uid(first.series_instance_uid)}"
    for keyword, value in vars(first).items():
        others = {vars(identity)[keyword] for identity, _ in entries} - {value}
        if others:
            raise RefusedInput(
                where,
                f"all slices of a series must have one {keyword.replace('_', ' ')}; found {len(others) + 1}.",
                "Series are mixed up under one UID: export them again from their source.",
            )
    return SeriesHeader(**vars(first), slices=tuple(header for _, header in entries))
