"""The headers of slices: from a single-frame file, or from the functional groups of a multi-frame one."""

import math
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from consilium.errors import RefusedInput
from consilium.importers.attributes import Attributes
from consilium.importers.dicom_file import EXPORT_AGAIN, read_dicom, reading
from consilium.importers.dicom_series import SliceHeader
from consilium.importers.pixels import PixelFormat, StoredSlice

SLICE_KEYWORDS = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SamplesPerPixel", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept",
]  # fmt: skip
"""What `read_identity` and `slice_header` look at."""
MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
"""Functional groups that hold the plane and the rescaling (DICOM PS3.3 C.7.6.16.2)."""
MAX_FRAMES = 20_000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be the same in all slices of a series; UIDs may be "" where they were taken away. Private."""

    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    modality: str
    sop_class_uid: str
    patient_identity: str


def read_identity(attributes: Attributes) -> Identity:
    """Who and what a file belongs to; "" for a UID that de-identification took away.

    Raises:
        RefusedInput: If a UID is there but is none.
    """
    return Identity(
        series_instance_uid=attributes.uid("SeriesInstanceUID"),
        study_instance_uid=attributes.uid("StudyInstanceUID"),
        frame_of_reference_uid=attributes.uid("FrameOfReferenceUID"),
        modality=attributes.text("Modality"),
        sop_class_uid=attributes.sop_class_uid,
        patient_identity=attributes.decoded_text("PatientID"),
    )


def slice_header(path: Path, attributes: Attributes) -> SliceHeader:
    """The one slice of a single-frame file.

    Raises:
        RefusedInput: If the plane, the pixels or their unit are not described.
    """
    frames = attributes.whole("NumberOfFrames", 1)
    if frames != 1:
        raise RefusedInput(
            attributes.where,
            f"an image of a single-frame class must hold one slice; found {frames} frames.",
            "Export it as one file per slice, or as Enhanced CT.",
        )
    return _header(path, attributes, [attributes])


def frame_headers(path: Path, attributes: Attributes) -> list[SliceHeader]:
    """Every frame of a multi-frame file, as a slice (DICOM PS3.3 C.7.6.16).

    Raises:
        RefusedInput: As `slice_header`, and if there are not as many functional groups as frames.
    """
    where = attributes.where
    tags = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    groups = read_dicom(path, tags=tags, where=where)
    frames = attributes.whole("NumberOfFrames")
    with reading(where):
        shared = next(iter(groups.get("SharedFunctionalGroupsSequence") or [Dataset()]))
        per_frame = list(groups.get("PerFrameFunctionalGroupsSequence") or [])
    if not 1 <= frames == len(per_frame) <= MAX_FRAMES:
        raise RefusedInput(
            where,
            f"a multi-frame image must describe each of its 1 to {MAX_FRAMES} frames; found {frames} frames "
            f"and {len(per_frame)} descriptions.",
            EXPORT_AGAIN,
        )
    common = [*_macros(shared, where), attributes]
    return [
        _header(path, attributes, [*_macros(own, where), *common], index)
        for index, own in enumerate(per_frame)
    ]


def _macros(group: Dataset, where: str) -> list[Attributes]:
    with reading(where):
        items = [group[name].value[0] for name in MACROS if name in group and group[name].value]
    return [Attributes.from_dataset(item, where) for item in items]


def _header(
    path: Path, attributes: Attributes, places: list[Attributes], frame_index: int = 0
) -> SliceHeader:
    """A slice whose attributes stand in the first of ``places`` that has them."""

    def place(keyword: str) -> Attributes:
        return next((p for p in places if keyword in p), attributes)

    layout = _pixel_format(attributes)
    px, py, pz = place("ImagePositionPatient").decimals("ImagePositionPatient", 3)
    a, b, c, d, e, f = place("ImageOrientationPatient").decimals("ImageOrientationPatient", 6)
    rows_mm, columns_mm = place("PixelSpacing").decimals("PixelSpacing", 2)
    slope, intercept = _rescale(place("RescaleSlope"), attributes.text("Modality"))
    stored = StoredSlice(
        path=path,
        frame_index=frame_index,
        pixel_data_at=attributes.pixel_data_at if layout.is_plain else None,
        slope=slope,
        intercept=intercept,
        format=layout,
    )
    return SliceHeader(
        sop_instance_uid=attributes.sop_instance_uid,
        position_lps_mm=(px, py, pz),
        orientation=(a, b, c, d, e, f),
        pixel_spacing_mm=(rows_mm, columns_mm),
        thickness_mm=_thickness(place("SliceThickness")),
        stored=stored,
    )


def _rescale(attributes: Attributes, modality: str) -> tuple[float, float]:
    """Slope and intercept; only CT must say them, since its unit hangs on them."""
    if modality != "CT" and "RescaleSlope" not in attributes:
        return 1.0, 0.0
    (slope,) = attributes.decimals("RescaleSlope", 1)
    (intercept,) = attributes.decimals("RescaleIntercept", 1)
    if slope == 0:
        raise RefusedInput(attributes.where, "RescaleSlope must not be 0; it is.", EXPORT_AGAIN)
    return slope, intercept


def _thickness(attributes: Attributes) -> float:
    """NaN where it is not given: it matters for single slices only."""
    return attributes.decimals("SliceThickness", 1)[0] if attributes.text("SliceThickness") else math.nan


def _pixel_format(attributes: Attributes) -> PixelFormat:
    rows, columns = attributes.whole("Rows"), attributes.whole("Columns")
    allocated = attributes.whole("BitsAllocated")
    stored = attributes.whole("BitsStored", allocated)
    high = attributes.whole("HighBit", stored - 1)
    samples = attributes.whole("SamplesPerPixel", 1)
    greyscale = samples == 1 and allocated in (8, 16, 32) and 1 <= stored <= allocated and high == stored - 1
    if min(rows, columns) < 1 or not greyscale:
        raise RefusedInput(
            attributes.where,
            "a slice must have rows, columns, one sample per pixel and 8, 16 or 32 bits with the value in "
            f"the low ones; found {rows} × {columns}, {samples} samples, {allocated} bits allocated, "
            f"{stored} stored, high bit {high}.",
            "Export it again as greyscale.",
        )
    signed = attributes.whole("PixelRepresentation", 0) == 1
    return PixelFormat(
        shape_yx=(rows, columns),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        transfer_syntax_uid=attributes.transfer_syntax_uid,
        padding=_padding(attributes, signed=signed, bits=allocated),
    )


def _padding(attributes: Attributes, *, signed: bool, bits: int) -> tuple[int, int] | None:
    """Lowest and highest stored padding value.

    Its own value representation is often wrong (63536 unsigned for -2000 signed in LIDC-IDRI): it is read
    with the sign of the pixels, as DICOM PS3.3 C.7.5.1.1.2 asks.
    """
    if "PixelPaddingValue" not in attributes or bits > 16:
        return None
    value = attributes.whole("PixelPaddingValue", 0)
    ends = [v % 2**bits for v in (value, attributes.whole("PixelPaddingRangeLimit", value))]
    if signed:
        ends = [v - 2**bits if v >= 2 ** (bits - 1) else v for v in ends]
    return min(ends), max(ends)
