"""Masks or polygons to an RTSTRUCT that a treatment-planning system takes."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

import consilium
from consilium.cases.files import write_atomically
from consilium.errors import DataError, GeometryError
from consilium.exporters.decimal_strings import decimals_for, format_decimals
from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.string_limits import check_strings
from consilium.geometry.outlines import polygons_from_mask
from consilium.geometry.volume import Grid
from consilium.standards.codes import Code, code_of
from consilium.types import Array, Mask

CONTOUR_DATA = Tag(0x3006, 0x0050)
SLICE_TOLERANCE = 0.25
"""A contour names the image of a slice within this share of the slice distance."""
COLOURS = (
    (230, 25, 75), (60, 180, 75), (67, 99, 216), (245, 130, 49), (145, 30, 180), (66, 212, 244),
    (240, 50, 230), (191, 239, 69), (250, 190, 212), (70, 153, 144), (154, 99, 36), (128, 128, 0),
)  # fmt: skip
TARGETS = ("GTV", "CTV", "PTV")
Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Who drew the contours: goes into every ROI (DICOM PS3.3 10.16, Algorithm Identification).

    Args:
        name: At most 64 characters, e.g. ``"consilium iunet"``.
        model_sha256: Digest of the model: 64 characters, goes into Algorithm Version. Or another version.
        parameters: Free text without identifiers.
        generation: ROI Generation Algorithm: AUTOMATIC, SEMIAUTOMATIC (corrected by a person) or MANUAL.
    """

    name: str
    model_sha256: str
    parameters: str = ""
    generation: str = "AUTOMATIC"

    def __post_init__(self) -> None:
        if self.generation not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL") or not self.model_sha256:
            raise DataError(
                "algorithm: generation must be AUTOMATIC, SEMIAUTOMATIC or MANUAL and the model's digest "
                f"given; got {self.generation!r} and {len(self.model_sha256)} characters."
            )


@dataclass(frozen=True, kw_only=True)
class Roi:
    """One structure to write.

    Args:
        name: At most 64 characters.
        polygons: Each (N, 3), points in LPS mm, parallel to the slices; none for a structure that was looked
            for and is not there.
        volume_cm3: For ROI Volume; left out if None.
        colour: Red, green and blue, 0 to 255; by default one of `COLOURS`.
        interpreted_type: RT ROI Interpreted Type; by default GTV, CTV or PTV by the name, else ORGAN.
    """

    name: str
    polygons: Sequence[Array]
    volume_cm3: float | None = None
    colour: Colour | None = None
    interpreted_type: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportedRoi:
    """What was written of one structure; ``without_image`` counts contours on slices without instance."""

    name: str
    roi_number: int
    contours: int
    points: int
    without_image: int


@dataclass(frozen=True, kw_only=True)
class ExportedStructureSet:
    """What was written: the new object's UID, and each structure in order."""

    sop_instance_uid: str
    rois: tuple[ExportedRoi, ...]


def rois_from_masks(masks: Iterable[tuple[str, Mask]], grid: Grid) -> Iterator[Roi]:
    """One `Roi` per named mask, traced when it is asked for, so that one mask at a time is in memory.

    Args:
        masks: Name and bool (Z, Y, X).
        grid: Of the masks: that of the series.
    """
    for name, mask in masks:
        volume = np.count_nonzero(mask) * grid.voxel_volume_cm3
        yield Roi(name=name, polygons=polygons_from_mask(mask, grid), volume_cm3=volume)


def export_rtstruct(
    path: Path,
    rois: Iterable[Roi],
    grid: Grid,
    reference: SeriesReference,
    *,
    algorithm: Algorithm,
    label: str = "consilium",
    created: datetime | None = None,
) -> ExportedStructureSet:
    """Write structures as one RTSTRUCT, approval UNAPPROVED, in one step.

    The transfer syntax is implicit VR little endian: with explicit VR a contour longer than 65,534 bytes
    cannot be a decimal string. A structure without polygons gets a ROI without contours.

    Args:
        path: The file; replaced if it is there.
        rois: Taken one at a time, e.g. from `rois_from_masks`.
        grid: Of the series: says how fine coordinates must be and on which slice a contour lies.
        reference: The series, e.g. ``SeriesReference.from_record(private.read_record(case_id))``.
        algorithm: Who drew them.
        label: Structure Set Label, at most 16 characters.
        created: By default now.

    Raises:
        DataError: If a name stands twice, or a string is longer than the standard allows.
        GeometryError: If no contour lies on a slice of the series.

    Source:
        DICOM PS3.3 A.19, C.8.8.5, C.8.8.6, C.8.8.8 (SNOMED CT codes where the name is TG-263's and its code
        is sure); keyholes: C.8.8.6.3.
    """
    moment = created or datetime.now()
    frame = reference.frame_of_reference_uid or _uid()
    dataset = _general_modules(reference, frame, label, moment)
    locate = _slice_finder(grid, reference)
    decimals = decimals_for(min(grid.spacing_zyx_mm))
    lists: tuple[list[Dataset], ...] = ([], [], [])
    written: list[ExportedRoi] = []
    names: set[str] = set()
    for number, roi in enumerate(rois, start=1):
        if roi.name in names:
            raise DataError(f"RTSTRUCT: every structure must have its own name; {roi.name!r} stands twice.")
        names.add(roi.name)
        contours, exported = _contours(roi, number, locate, decimals)
        lists[0].append(_structure_set_roi(roi, number, frame, algorithm))
        lists[1].append(_roi_contour(roi, number, contours))
        lists[2].append(_observation(roi, number))
        written.append(exported)
    total = sum(roi.contours for roi in written)
    if total and total == sum(roi.without_image for roi in written):
        raise GeometryError(
            f"RTSTRUCT: contours must lie on the slices of the series they are written for; none of {total} "
            "does. The masks are on another grid: resample them to the series' grid first."
        )
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = lists
    check_strings(dataset)
    write_atomically(path, _encode(dataset))
    return ExportedStructureSet(sop_instance_uid=str(dataset.SOPInstanceUID), rois=tuple(written))


def _encode(dataset: Dataset) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def _general_modules(reference: SeriesReference, frame: str, label: str, moment: datetime) -> Dataset:
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    return _of(
        SpecificCharacterSet="ISO_IR 192",
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=_uid(),
        Modality="RTSTRUCT",
        Manufacturer="consilium",
        ManufacturerModelName="consilium",
        SoftwareVersions=consilium.__version__,
        OperatorsName="",
        SeriesDescription="consilium: proposed contours",
        **reference.patient,
        **reference.study,
        SeriesInstanceUID=_uid(),
        SeriesNumber=None,
        InstanceNumber=1,
        FrameOfReferenceUID=frame,
        PositionReferenceIndicator=reference.position_reference_indicator,
        StructureSetLabel=label,
        StructureSetName="Proposed contours",
        StructureSetDescription="Contours proposed by a model, for a person to check. Not approved.",
        StructureSetDate=date,
        StructureSetTime=time,
        ReferencedFrameOfReferenceSequence=[_referenced_frame(reference, frame)],
        ApprovalStatus="UNAPPROVED",
    )


def _referenced_frame(reference: SeriesReference, frame: str) -> Dataset:
    series = _of(
        SeriesInstanceUID=reference.series_instance_uid,
        ContourImageSequence=[_image(reference, uid) for uid, _ in reference.slices],
    )
    study = _of(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=reference.study["StudyInstanceUID"],
        RTReferencedSeriesSequence=[series],
    )
    return _of(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])


def _structure_set_roi(roi: Roi, number: int, frame: str, algorithm: Algorithm) -> Dataset:
    family = _of(CodeValue="123110", CodingSchemeDesignator="DCM", CodeMeaning="Artificial Intelligence")
    identification = _of(
        AlgorithmFamilyCodeSequence=[family],
        AlgorithmName=algorithm.name,
        AlgorithmVersion=algorithm.model_sha256,
        AlgorithmSource=f"consilium {consilium.__version__}",
    )
    if algorithm.parameters:
        identification.AlgorithmParameters = algorithm.parameters
    item = _of(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame,
        ROIName=roi.name,
        ROIDescription=f"{algorithm.name}; model sha256 {algorithm.model_sha256}",
        ROIGenerationAlgorithm=algorithm.generation,
        ROIGenerationDescription=algorithm.name,
    )
    if algorithm.generation != "MANUAL":
        item.ROIDerivationAlgorithmIdentificationSequence = [identification]
    if roi.volume_cm3 is not None:
        item.ROIVolume = f"{roi.volume_cm3:.6g}"
    return item


def _roi_contour(roi: Roi, number: int, contours: list[Dataset]) -> Dataset:
    colour = roi.colour or COLOURS[(number - 1) % len(COLOURS)]
    item = _of(ROIDisplayColor=list(colour))
    if contours:
        item.ContourSequence = contours
    item.ReferencedROINumber = number
    return item


def _observation(roi: Roi, number: int) -> Dataset:
    by_name = next((kind for kind in TARGETS if roi.name.upper().startswith(kind)), "ORGAN")
    item = _of(ObservationNumber=number, ReferencedROINumber=number)
    codes = code_of(roi.name)
    if codes is not None:
        identification = _code(codes.kind)
        if codes.laterality is not None:
            identification.SegmentedPropertyTypeModifierCodeSequence = [_code(codes.laterality)]
        item.RTROIIdentificationCodeSequence = [identification]
    item.RTROIInterpretedType = roi.interpreted_type or by_name
    item.ROIInterpreter = ""
    return item


def _code(code: Code) -> Dataset:
    return _of(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _contours(
    roi: Roi, number: int, locate: Callable[[Array], Dataset | None], decimals: int
) -> tuple[list[Dataset], ExportedRoi]:
    contours: list[Dataset] = []
    points = without_image = 0
    for polygon in roi.polygons:
        if len(polygon) < 3:
            raise GeometryError(
                f"{roi.name}: a contour must have at least 3 points; one has {len(polygon)}. Leave it out."
            )
        contour = Dataset()
        image = locate(polygon)
        if image is not None:
            contour.ContourImageSequence = [image]
        without_image += image is None
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(polygon)
        contour.ContourNumber = len(contours) + 1
        data = format_decimals(polygon, decimals)
        contour[CONTOUR_DATA] = RawDataElement(CONTOUR_DATA, "DS", len(data), data, 0, True, True)
        # Else pydicom decodes the raw bytes and encodes them again, which takes ten times as long.
        contour.set_original_encoding(True, True, default_encoding)
        points += len(polygon)
        contours.append(contour)
    exported = ExportedRoi(
        name=roi.name,
        roi_number=number,
        contours=len(contours),
        points=points,
        without_image=without_image,
    )
    return contours, exported


def _slice_finder(grid: Grid, reference: SeriesReference) -> Callable[[Array], Dataset | None]:
    """A function from a polygon to the reference of the image it lies on, or None."""
    positions = np.array([position for _, position in reference.slices]).reshape(-1, 3)
    levels = grid.affine.to_indices(positions)[:, 0]
    images = [_image(reference, uid) for uid, _ in reference.slices]

    def locate(polygon: Array) -> Dataset | None:
        if not len(levels):
            return None
        distance = np.abs(levels - grid.affine.to_indices(polygon[0])[0])
        nearest = int(distance.argmin())
        return images[nearest] if distance[nearest] <= SLICE_TOLERANCE else None

    return locate


def _image(reference: SeriesReference, uid: str) -> Dataset:
    return _of(ReferencedSOPClassUID=reference.sop_class_uid, ReferencedSOPInstanceUID=uid)


def _of(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _uid() -> str:
    return str(generate_uid(prefix=None))
