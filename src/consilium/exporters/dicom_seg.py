"""DICOM SEG out, on the hospital's own UIDs: a label map where nothing overlaps, else one bit per segment."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues as Kinds
from highdicom.seg import (
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

import consilium
from consilium.cases.files import write_atomically
from consilium.errors import DataError
from consilium.geometry.volume import Grid
from consilium.standards.codes import Code, code_of
from consilium.types import Array

SLICE_MATCH_MM = 0.05
"""A slice of the grid is an image's if its corner lies this near."""
TISSUE = CodedConcept("85756007", "SCT", "Tissue")
MANUFACTURER = "consilium"
LO = 64


def export_seg(
    path: Path,
    masks: Sequence[tuple[str, Array]],
    grid: Grid,
    record: Mapping[str, Any],
    *,
    algorithm: str = "",
    model_sha256: str = "",
) -> str:
    """Write a SEG that refers to the original images.

    Slices of the grid that have no image (filled gaps) get no frame.

    Args:
        path: Replaced in one step.
        masks: Name and (Z, Y, X), not 0 inside, in the order of their segment numbers, from 1.
        grid: Of the masks.
        record: The private record of a DICOM case.
        algorithm: Name of what drew them; "" if a person did.
        model_sha256: Digest of the model; "" if a person drew.

    Returns:
        ``"LABELMAP"`` or ``"BINARY"``: the kind that was chosen.

    Raises:
        DataError: If the record is of no DICOM source of single-frame images, or there is nothing to write.

    Source:
        DICOM PS3.3 A.51 (Segmentation IOD), C.8.20.2.
    """
    slices = _instances(record, grid)
    if not masks:
        raise DataError("DICOM SEG export: there must be a structure; none is contoured in this case.")
    images = [_source_image(record, grid, z, uid) for z, uid in slices]
    planes = [z for z, _ in slices]
    inside = [np.asarray(mask)[planes] != 0 for _, mask in masks]
    labels = np.zeros(inside[0].shape, dtype=np.uint8 if len(inside) < 256 else np.uint16)
    overlap = False
    for number, mask in enumerate(inside, start=1):
        overlap = overlap or bool((labels[mask] != 0).any())
        labels[mask] = number
    kind = SegmentationTypeValues.BINARY if overlap else SegmentationTypeValues.LABELMAP
    pixels: Array = np.stack(inside, axis=-1).astype(np.uint8) if overlap else labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=[
                _describe(n, name, algorithm) for n, (name, _) in enumerate(masks, start=1)
            ],
            series_instance_uid=generate_uid(),
            series_number=9002,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=(algorithm or MANUFACTURER)[:LO],
            software_versions=consilium.__version__,
            device_serial_number=(model_sha256 or "none")[:LO],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=bool(labels.any()),
        )
        if not overlap:
            # Not GDCM's encoder: it ends the whole process on rows of some lengths.
            dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    write_atomically(path, buffer.getvalue())
    return str(kind.value)


def _describe(number: int, name: str, algorithm: str) -> SegmentDescription:
    identification = AlgorithmIdentificationSequence(
        name=(algorithm or "none")[:LO],
        family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=consilium.__version__,
    )
    codes = code_of(name)
    description = SegmentDescription(
        segment_number=number,
        segment_label=name[:LO],
        segmented_property_category=TISSUE if codes is None else _concept(codes.category),
        segmented_property_type=TISSUE if codes is None else _concept(codes.kind),
        algorithm_type=Kinds.AUTOMATIC if algorithm else Kinds.MANUAL,
        algorithm_identification=identification if algorithm else None,
    )
    if codes is not None and codes.laterality is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(codes.laterality)]
    return description


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _instances(record: Mapping[str, Any], grid: Grid) -> list[tuple[int, str]]:
    """(slice of the grid, SOP Instance UID) of every image, in slice order."""
    if record.get("kind") != "dicom":
        raise DataError(
            "DICOM SEG export: the case must come from DICOM, to refer to its images; it does not. "
            "Export NIfTI instead, or import the DICOM series."
        )
    found = []
    for entry in record["slices"]:
        place = grid.affine.to_indices(entry["position_lps_mm"])
        z = round(float(place[0]))
        corner = grid.affine.to_points((z, 0, 0))
        near = np.linalg.norm(corner - np.asarray(entry["position_lps_mm"])) <= SLICE_MATCH_MM
        if near and 0 <= z < grid.shape_zyx[0]:
            found.append((z, str(entry["sop_instance_uid"])))
    if not found or len({uid for _, uid in found}) != len(found):
        raise DataError(
            f"DICOM SEG export: every image must be a file of its own and lie on the grid; found "
            f"{len(found)} positions in {len({uid for _, uid in found})} files. Export RTSTRUCT instead."
        )
    return sorted(found)


def _source_image(record: Mapping[str, Any], grid: Grid, z: int, uid: str) -> Dataset:
    """The attributes of an original image that a SEG copies or refers to; no pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 192"
    series = record["series"]
    for keyword, value in {**record["patient"], **record["study"]}.items():
        setattr(image, keyword, value)
    for keyword in ("SeriesInstanceUID", "Modality", "SOPClassUID", "FrameOfReferenceUID"):
        setattr(image, keyword, series[keyword])
    image.PositionReferenceIndicator = series.get("PositionReferenceIndicator", "")
    image.SOPInstanceUID = uid
    image.Rows, image.Columns = grid.shape_zyx[1:]
    axes, spacing = grid.affine.axes_lps, grid.spacing_zyx_mm
    image.ImageOrientationPatient = [_short(v) for v in (*axes[:, 2], *axes[:, 1])]
    image.ImagePositionPatient = [_short(v) for v in grid.affine.to_points((z, 0, 0))]
    image.PixelSpacing = [_short(spacing[1]), _short(spacing[2])]
    image.SliceThickness = _short(spacing[0])
    return image


def _short(value: float) -> str:
    """A decimal string of at most 16 characters (DICOM PS3.5 table 6.2-1)."""
    text = repr(float(value))
    digits = 14
    while len(text) > 16:
        digits -= 1
        text = f"{value:.{digits}g}"
    return text
