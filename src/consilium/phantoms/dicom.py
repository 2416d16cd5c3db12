"""Phantom patients as DICOM files: a CT series and, beside it, the RTSTRUCT of a planning system.

Written with plain pydicom and on purpose not by `consilium.exporters`, so that what the importers are tested
with does not come from the code beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from consilium.geometry.affine import Affine
from consilium.geometry.contours import slice_distance_mm
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray

INTERCEPT_HU = -1024
COLOURS = ((230, 25, 75), (60, 180, 75), (67, 99, 216), (245, 130, 49), (145, 30, 180))


@dataclass(frozen=True, kw_only=True)
class SeriesIdentity:
    """Who the phantom says it is; every UID follows from ``label``.

    Args:
        label: E.g. ``"North-3"``; the patient.
        scan: Tells several scans of one patient apart: each has its own study, series and frame of reference.
        manufacturer: DICOM Manufacturer.
        model_name: DICOM Manufacturer's Model Name.
        kvp: Tube voltage.
    """

    label: str
    manufacturer: str = "Phantom Systems"
    model_name: str = "Analytic 1"
    kvp: float = 120.0
    scan: str = ""

    def uid(self, *of: object) -> str:
        """A UID that depends on the label and on what it is for, and on nothing else."""
        return str(
            generate_uid(entropy_srcs=[self.label, *([self.scan] if self.scan else []), *map(str, of)])
        )


def write_series(
    folder: Path, image: Volume, identity: SeriesIdentity, *, leave_out: Sequence[int] = ()
) -> dict[int, str]:
    """Write one CT file per slice, uncompressed, explicit VR little endian.

    Args:
        folder: Made if absent.
        image: In Hounsfield units within −1024…31743; any grid, oblique or sheared.
        identity: Names, scanner and UIDs.
        leave_out: Slices that are not written, as if they were lost.

    Returns:
        Slice -> SOP Instance UID of those written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = (np.rint(image.array).astype(np.int32) - INTERCEPT_HU).astype("<u2")
    written = {}
    for z in range(image.grid.shape_zyx[0]):
        if z in leave_out:
            continue
        dataset = _slice(image.grid, stored[z], z, identity)
        dataset.save_as(folder / f"ct_{z + 1:04d}.dcm", enforce_file_format=True)
        written[z] = str(dataset.SOPInstanceUID)
    return written


def write_structures(
    path: Path,
    contours: Mapping[str, Sequence[Array]],
    grid: Grid,
    identity: SeriesIdentity,
    *,
    instances: Mapping[int, str] | None = None,
    decimals: int = 3,
) -> None:
    """Write an RTSTRUCT the way a planning system does: manual, implicit VR, rounded coordinates.

    Args:
        path: The file.
        contours: Structure -> polygons (N, 3) in LPS mm; an empty list is a ROI without contours.
        grid: Of the series.
        identity: The series'.
        instances: Slice -> SOP Instance UID; contours of slices that are not in it name no instance.
        decimals: Digits after the point.
    """
    dataset = _general(identity, RTStructureSetStorage, "RTSTRUCT", identity.uid("rtstruct", path.name))
    dataset.StructureSetLabel = "Phantom"
    dataset.StructureSetDate, dataset.StructureSetTime = "20261101", "120000"
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.OperatorsName = ""
    known = instances or {}
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(identity, known)]
    rois, roi_contours, observations = [], [], []
    for number, (structure, polygons) in enumerate(contours.items(), start=1):
        rois.append(
            _of(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=identity.uid("frame of reference"),
                ROIName=structure,
                ROIGenerationAlgorithm="MANUAL",
            )
        )
        roi_contour = _of(ROIDisplayColor=list(COLOURS[number % len(COLOURS)]))
        if polygons:
            roi_contour.ContourSequence = [_contour(p, grid, known, decimals) for p in polygons]
        roi_contour.ReferencedROINumber = number
        roi_contours.append(roi_contour)
        observations.append(
            _of(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="ORGAN",
                ROIInterpreter="",
            )
        )
    dataset.StructureSetROISequence = rois
    dataset.ROIContourSequence = roi_contours
    dataset.RTROIObservationsSequence = observations
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True, implicit_vr=True, little_endian=True)


def write_patient(
    folder: Path,
    image: Volume,
    contours: Mapping[str, Sequence[Array]],
    identity: SeriesIdentity,
    *,
    leave_out: Sequence[int] = (),
    name_instances: bool = True,
) -> Path:
    """Write ``folder/ct/*.dcm`` and ``folder/rtstruct.dcm``.

    Args:
        folder: Made if absent.
        image: The CT.
        contours: As in `write_structures`.
        identity: As in `write_series`.
        leave_out: Slices that are not written; contours on them are kept out as well.
        name_instances: Whether contours name their CT instances, rightly; if not, they name others that do
            not exist, as after a re-export of the images.

    Returns:
        ``folder``.
    """
    written = write_series(folder / "ct", image, identity, leave_out=leave_out)
    lost = set(leave_out)
    kept = {
        name: [p for p in polygons if slice_of(p, image.grid) not in lost]
        for name, polygons in contours.items()
    }
    named = written if name_instances else {z: identity.uid("elsewhere", z) for z in written}
    write_structures(folder / "rtstruct.dcm", kept, image.grid, identity, instances=named)
    return folder


def slice_of(polygon: Array, grid: Grid) -> int:
    """The slice nearest to a polygon's first point."""
    return round(float(grid.affine.to_indices(polygon[0])[0]))


def moved(
    image: Volume, contours: Mapping[str, Sequence[Array]], rotation: FloatArray
) -> tuple[Volume, dict[str, list[FloatArray]]]:
    """Turn a patient, image and polygons alike, about the origin: voxels stay, their places change.

    Args:
        image: On any grid.
        contours: In LPS mm.
        rotation: (3, 3), acts on points (x, y, z).
    """
    matrix = image.grid.affine.matrix.copy()
    matrix[:3] = rotation @ matrix[:3]
    turned = {name: [np.asarray(p) @ rotation.T for p in polygons] for name, polygons in contours.items()}
    return Volume(image.array, Grid(image.grid.shape_zyx, Affine(matrix))), turned


def _slice(grid: Grid, stored: Array, z: int, identity: SeriesIdentity) -> Dataset:
    dataset = _general(identity, CTImageStorage, "CT", identity.uid("instance", z))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP = identity.kvp
    dataset.InstanceNumber = z + 1
    dataset.FrameOfReferenceUID = identity.uid("frame of reference")
    dataset.PositionReferenceIndicator = ""
    affine = grid.affine
    dataset.ImagePositionPatient = [_decimal(v) for v in affine.to_points((z, 0, 0))]
    row, column = affine.axes_lps[:, 2], affine.axes_lps[:, 1]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*row, *column)]
    dataset.PixelSpacing = [_decimal(affine.spacing_zyx_mm[1]), _decimal(affine.spacing_zyx_mm[2])]
    dataset.SliceThickness = _decimal(slice_distance_mm(grid))
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT_HU, 1, "HU"
    dataset.PixelData = stored.tobytes()
    return dataset


def _general(identity: SeriesIdentity, sop_class: str, modality: str, instance: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName, dataset.PatientID = f"Phantom^{identity.label}", f"PHANTOM-{identity.label}"
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "O"
    dataset.StudyInstanceUID = identity.uid("study")
    dataset.StudyDate, dataset.StudyTime = "20261101", "115900"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.Modality = modality
    dataset.SeriesInstanceUID = identity.uid("series", modality)
    dataset.SeriesNumber = 1 if modality == "CT" else 2
    dataset.Manufacturer = identity.manufacturer
    dataset.ManufacturerModelName = identity.model_name
    return dataset


def _frame_of_reference(identity: SeriesIdentity, instances: Mapping[int, str]) -> Dataset:
    images = [_image(uid) for uid in instances.values()]
    series = _of(SeriesInstanceUID=identity.uid("series", "CT"), ContourImageSequence=images)
    study = _of(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=identity.uid("study"),
        RTReferencedSeriesSequence=[series],
    )
    return _of(FrameOfReferenceUID=identity.uid("frame of reference"), RTReferencedStudySequence=[study])


def _contour(polygon: Array, grid: Grid, instances: Mapping[int, str], decimals: int) -> Dataset:
    contour = Dataset()
    uid = instances.get(slice_of(polygon, grid))
    if uid is not None:
        contour.ContourImageSequence = [_image(uid)]
    contour.ContourGeometricType = "CLOSED_PLANAR" if len(polygon) > 1 else "POINT"
    contour.NumberOfContourPoints = len(polygon)
    contour.ContourData = [f"{value:.{decimals}f}" for value in np.asarray(polygon).ravel()]
    return contour


def _image(uid: str) -> Dataset:
    return _of(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)


def _of(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _decimal(value: float) -> str:
    """A decimal string of at most 16 bytes (PS3.5 table 6.2-1) with as many digits as fit."""
    for digits in range(14, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.1g}"
