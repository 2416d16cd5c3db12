"""The headers of slices: from a single-frame file, or from the functional groups of a multi-frame one."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from consilium.errors import RefusedInput
from consilium.importers.dicom_file import EXPORT_AGAIN, check_uid, decimals, read_dicom, reading
from consilium.importers.dicom_series import SliceHeader
from consilium.importers.pixels import PixelFormat, StoredSlice
from consilium.importers.slice_order import Orientation
from consilium.types import Triple

SLICE_KEYWORDS = [
    "SOPInstanceUID", "Modality", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SamplesPerPixel",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
]  # fmt: skip
"""What `read_identity` and `slice_header` look at."""
MAX_FRAMES = 20_000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be the same in all slices of a series; private."""

    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    modality: str
    sop_class_uid: str
    patient_identity: str


def read_identity(dataset: Dataset, where: str) -> Identity:
    """Who and what a file belongs to.

    Raises:
        RefusedInput: If a UID is missing or is none.
    """
    with reading(where):
        patient = str(dataset.get("PatientID") or "").strip()
        issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
        frame = dataset.get("FrameOfReferenceUID")
        modality, sop_class = str(dataset.get("Modality", "")), str(dataset.get("SOPClassUID", ""))
        series, study = dataset.get("SeriesInstanceUID"), dataset.get("StudyInstanceUID")
    return Identity(
        series_instance_uid=check_uid(series, what="SeriesInstanceUID", where=where),
        study_instance_uid=check_uid(study, what="StudyInstanceUID", where=where),
        frame_of_reference_uid=check_uid(frame, what="FrameOfReferenceUID", where=where) if frame else "",
        modality=modality,
        sop_class_uid=sop_class,
        patient_identity=f"{patient}\n{issuer}" if patient and issuer else patient,
    )


def slice_header(path: Path, dataset: Dataset, pixel_data_at: int, *, where: str) -> SliceHeader:
    """The one slice of a single-frame file.

    Args:
        path: The file.
        dataset: With `SLICE_KEYWORDS`.
        pixel_data_at: Position of the PixelData element in the file.
        where: How messages call the series.

    Raises:
        RefusedInput: If the plane, the pixels or their unit are not described.
    """
    frames = _whole(dataset, "NumberOfFrames", where, default=1)
    if frames != 1:
        raise RefusedInput(
            where,
            f"an image of a single-frame class must hold one slice; found {frames} frames.",
            "Export it as one file per slice, or as Enhanced CT.",
        )
    return _header(path, dataset, [dataset], pixel_data_at, where)


def frame_headers(path: Path, dataset: Dataset, pixel_data_at: int, *, where: str) -> list[SliceHeader]:
    """Every frame of a multi-frame file, as a slice (DICOM PS3.3 C.7.6.16).

    Raises:
        RefusedInput: As `slice_header`, and if there are not as many functional groups as frames.
    """
    groups = read_dicom(
        path, tags=["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"], where=where
    )
    frames = _whole(dataset, "NumberOfFrames", where)
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
    headers = []
    for index, own in enumerate(per_frame):
        with reading(where):
            macros = [*_macros(own), *_macros(shared)]
        headers.append(_header(path, dataset, [*macros, dataset], pixel_data_at, where, frame_index=index))
    return headers


def _macros(group: Dataset) -> list[Dataset]:
    """The items of a functional group that hold the plane and the rescaling."""
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    return [group[name].value[0] for name in names if name in group and group[name].value]


def _header(
    path: Path,
    dataset: Dataset,
    places: list[Dataset],
    pixel_data_at: int,
    where: str,
    *,
    frame_index: int = 0,
) -> SliceHeader:
    """A slice whose attributes stand in the first of ``places`` that has them."""

    def place(keyword: str) -> Dataset:
        return next((p for p in places if keyword in p), dataset)

    layout = _pixel_format(dataset, where)
    px, py, pz = decimals(place("ImagePositionPatient"), "ImagePositionPatient", count=3, where=where)
    orientation = decimals(place("ImageOrientationPatient"), "ImageOrientationPatient", count=6, where=where)
    rows_mm, columns_mm = decimals(place("PixelSpacing"), "PixelSpacing", count=2, where=where)
    slope, intercept = _rescale(place("RescaleSlope"), str(dataset.get("Modality", "")), where)
    stored = StoredSlice(
        path=path,
        frame_index=frame_index,
        pixel_data_at=pixel_data_at if layout.is_plain else None,
        slope=slope,
        intercept=intercept,
        format=layout,
    )
    return SliceHeader(
        sop_instance_uid=check_uid(dataset.get("SOPInstanceUID"), what="SOPInstanceUID", where=where),
        position_lps_mm=_triple(px, py, pz),
        orientation=_six(orientation),
        pixel_spacing_mm=(rows_mm, columns_mm),
        thickness_mm=_thickness(place("SliceThickness"), where),
        stored=stored,
    )


def _triple(x: float, y: float, z: float) -> Triple:
    return x, y, z


def _six(values: tuple[float, ...]) -> Orientation:
    a, b, c, d, e, f = values
    return a, b, c, d, e, f


def _rescale(dataset: Dataset, modality: str, where: str) -> tuple[float, float]:
    """Slope and intercept; only CT must say them, since its unit hangs on them."""
    if modality != "CT" and "RescaleSlope" not in dataset:
        return 1.0, 0.0
    (slope,) = decimals(dataset, "RescaleSlope", count=1, where=where)
    (intercept,) = decimals(dataset, "RescaleIntercept", count=1, where=where)
    if slope == 0:
        raise RefusedInput(where, "RescaleSlope must not be 0; it is.", EXPORT_AGAIN)
    return slope, intercept


def _thickness(dataset: Dataset, where: str) -> float:
    """NaN where it is not given: it matters for single slices only."""
    with reading(where):
        value = dataset.get("SliceThickness")
        return math.nan if value in (None, "") else float(value)


def _whole(dataset: Dataset, keyword: str, where: str, *, default: int | None = None) -> int:
    with reading(where):
        value: Any = dataset.get(keyword)
        if value in (None, "") and default is not None:
            return default
        return int(value)


def _pixel_format(dataset: Dataset, where: str) -> PixelFormat:
    rows, columns = _whole(dataset, "Rows", where), _whole(dataset, "Columns", where)
    allocated = _whole(dataset, "BitsAllocated", where)
    stored = _whole(dataset, "BitsStored", where, default=allocated)
    high = _whole(dataset, "HighBit", where, default=stored - 1)
    samples = _whole(dataset, "SamplesPerPixel", where, default=1)
    signed = _whole(dataset, "PixelRepresentation", where, default=0) == 1
    if min(rows, columns) < 1 or samples != 1 or allocated not in (8, 16, 32) or high != stored - 1:
        raise RefusedInput(
            where,
            "a slice must have rows, columns, one sample per pixel and 8, 16 or 32 bits with the value in "
            f"the low ones; found {rows} × {columns}, {samples} samples, {allocated} bits allocated, "
            f"{stored} stored, high bit {high}.",
            "Export it again as greyscale.",
        )
    with reading(where):
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    return PixelFormat(
        shape_yx=(rows, columns),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        transfer_syntax_uid=syntax,
        padding=_padding(dataset, where, signed=signed, bits=allocated),
    )


def _padding(dataset: Dataset, where: str, *, signed: bool, bits: int) -> tuple[int, int] | None:
    """Lowest and highest stored padding value.

    Its own value representation is often wrong (63536 unsigned for -2000 signed in LIDC-IDRI): it is read
    with the sign of the pixels, as DICOM PS3.3 C.7.5.1.1.2 asks.
    """
    if "PixelPaddingValue" not in dataset:
        return None
    value = _whole(dataset, "PixelPaddingValue", where)
    limit = _whole(dataset, "PixelPaddingRangeLimit", where, default=value)
    ends = [
        v % 2**bits - 2**bits if signed and v % 2**bits >= 2 ** (bits - 1) else v % 2**bits
        for v in (value, limit)
    ]
    return min(ends), max(ends)
