"""DICOM SEG in: segments placed on a series' grid by the position of each frame."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from consilium.cases.case import MAX_NAME_LENGTH, Finding
from consilium.cases.draft import AnnotationDraft
from consilium.errors import RefusedInput
from consilium.geometry.volume import Grid
from consilium.importers.dicom_file import decoding_plugin, read_dicom, reading
from consilium.types import Array, FloatArray, Mask

WHERE = "DICOM SEG"
FRAME_TOLERANCE_MM = 0.05
"""A frame's corner may lie this far from the slice it belongs to; positions in SEG are often rounded."""
THRESHOLD = 0.5
MIN_TOKEN_LENGTH = 3


@dataclass(frozen=True)
class _Frame:
    """One frame: its slice on the grid, and the segment it is of (0: all, in a label map)."""

    index: int
    slice_index: int
    segment_number: int


def annotations_from_seg(
    path: Path, grid: Grid, *, frame_of_reference_uid: str, reader: str
) -> tuple[tuple[AnnotationDraft, ...], tuple[Finding, ...]]:
    """Place every segment on a series' grid.

    Segments may overlap. Slices without a frame are outside the segment (DICOM PS3.3 C.8.20.2: frames without
    any voxel may be left out). Probabilities are thresholded at 0.5, with a finding.

    Raises:
        RefusedInput: If it lies in another frame of reference or on another grid, or cannot be read.
    """
    dataset = read_dicom(path, where=WHERE)
    with reading(WHERE):
        kind = str(dataset.get("SegmentationType", ""))
        frame_uid = str(dataset.get("FrameOfReferenceUID") or "")
        segments = {int(s.SegmentNumber): str(s.get("SegmentLabel") or "") for s in dataset.SegmentSequence}
        tokens = _identifying_words(dataset)
    if frame_uid and frame_of_reference_uid and frame_uid != frame_of_reference_uid:
        raise RefusedInput(
            WHERE,
            "must lie in the frame of reference of its images; it lies in another one.",
            "Register it in the system that made it, or export the images it was made on.",
        )
    frames = _frames(dataset, grid, kind)
    if frames:
        _pixels(dataset, frames[-1].index)  # of a file that is cut off the last one is missing
    maximum = int(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 0
    binary = not maximum or _is_binary(dataset, maximum)
    findings = []
    if not binary:
        findings.append(
            Finding(
                code="fractional-segmentation",
                message=f"the segmentation holds fractions; voxels of at least {THRESHOLD:.0%} count.",
                remedy="Look whether the contours fit.",
            )
        )
    annotations = []
    taken: set[str] = set()
    for number, label in sorted(segments.items()):
        if number == 0:
            continue
        name = _public_name(label, number, tokens, taken)
        taken.add(name)
        annotations.append(
            AnnotationDraft(
                structure=name, reader=reader, mask=_masker(dataset, frames, number, maximum, grid=grid)
            )
        )
    return tuple(annotations), tuple(findings)


def _masker(
    dataset: Dataset, frames: list[_Frame], number: int, maximum: int, *, grid: Grid
) -> "_SegmentMask":
    mine = [f for f in frames if f.segment_number in (0, number)]
    return _SegmentMask(dataset, mine, number, maximum, grid)


@dataclass(frozen=True)
class _SegmentMask:
    """Makes the mask of one segment when it is asked for."""

    dataset: Dataset
    frames: list[_Frame]
    number: int
    maximum: int
    grid: Grid

    def __call__(self) -> Mask:
        mask = np.zeros(self.grid.shape_zyx, dtype=np.bool_)
        for frame in self.frames:
            pixels = _pixels(self.dataset, frame.index)
            if frame.segment_number == 0:
                inside = pixels == self.number
            elif self.maximum:
                inside = pixels >= THRESHOLD * self.maximum
            else:
                inside = pixels != 0
            mask[frame.slice_index] |= inside
        return mask


def _pixels(dataset: Dataset, index: int) -> Array:
    with reading(WHERE):
        if int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return _bits(dataset, index)
        many = int(dataset.get("NumberOfFrames") or 1) > 1
        plugin = decoding_plugin(dataset)
        frame = index if many else None
        return np.asarray(pixel_array(dataset, index=frame, raw=True, decoding_plugin=plugin))


def _bits(dataset: Dataset, index: int) -> Array:
    """One frame of one bit per pixel; frames follow each other without a gap (DICOM PS3.5 8.1.1).

    pydicom refuses a frame that does not begin and end with a byte.
    """
    shape = int(dataset.Rows), int(dataset.Columns)
    start, stop = index * shape[0] * shape[1], (index + 1) * shape[0] * shape[1]
    packed = np.frombuffer(dataset.PixelData, np.uint8)[start // 8 : -(-stop // 8)]
    bits = np.unpackbits(packed, bitorder="little")
    return bits[start % 8 :][: stop - start].reshape(shape)


def _is_binary(dataset: Dataset, maximum: int) -> bool:
    count = int(dataset.get("NumberOfFrames") or 1)
    return all(np.isin(_pixels(dataset, k), (0, maximum)).all() for k in range(count))


def _frames(dataset: Dataset, grid: Grid, kind: str) -> list[_Frame]:
    """Every frame with its slice.

    Raises:
        RefusedInput: If the rows, columns, spacing, directions or a position are not the grid's.
    """
    with reading(WHERE):
        shape = int(dataset.Rows), int(dataset.Columns)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        numbers = [_segment_number(own, shared) if kind != "LABELMAP" else 0 for own in per_frame]
        planes = [_Plane(own, shared) for own in per_frame]
    if shape != grid.shape_zyx[1:]:
        raise RefusedInput(
            WHERE,
            f"must have the rows and columns of its images, {grid.shape_zyx[1:]}; it has {shape}.",
            "Resample it to the images in the system that made it.",
        )
    frames = []
    for index, (corners, number) in enumerate(zip(planes, numbers, strict=True)):
        place = grid.affine.to_indices(corners(shape))
        z = round(float(place[0, 0]))
        expected = grid.affine.to_points([(z, 0, 0), (z, shape[0] - 1, 0), (z, 0, shape[1] - 1)])
        off = float(np.linalg.norm(expected - corners(shape), axis=1).max())
        if not 0 <= z < grid.shape_zyx[0] or off > FRAME_TOLERANCE_MM:
            raise RefusedInput(
                WHERE,
                f"every frame must lie on a slice of its images within {FRAME_TOLERANCE_MM} mm; frame "
                f"{index + 1} lies {off:.2f} mm from slice {z + 1} of {grid.shape_zyx[0]}.",
                "Resample it to the images in the system that made it.",
            )
        frames.append(_Frame(index, z, number))
    return frames


def _segment_number(own: Dataset, shared: Dataset) -> int:
    place = own if "SegmentIdentificationSequence" in own else shared
    return int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


class _Plane:
    """Positions of three corner voxels of a frame, once the number of rows and columns is known."""

    def __init__(self, own: Dataset, shared: Dataset) -> None:
        def item(name: str) -> Dataset:
            place = own if name in own else shared
            found: Dataset = place[name].value[0]
            return found

        self._position = np.array([float(v) for v in item("PlanePositionSequence").ImagePositionPatient])
        directions = [float(v) for v in item("PlaneOrientationSequence").ImageOrientationPatient]
        self._row, self._column = np.array(directions[:3]), np.array(directions[3:])
        self._spacing = [float(v) for v in item("PixelMeasuresSequence").PixelSpacing]

    def __call__(self, shape: tuple[int, int]) -> FloatArray:
        down = self._column * self._spacing[0] * (shape[0] - 1)
        along = self._row * self._spacing[1] * (shape[1] - 1)
        return np.stack([self._position, self._position + down, self._position + along])


def _identifying_words(dataset: Dataset) -> frozenset[str]:
    text = " ".join(str(dataset.get(k, "")) for k in ("PatientName", "PatientID", "PatientBirthDate"))
    return frozenset(w for w in re.split(r"[\W_]+", text.lower()) if len(w) >= MIN_TOKEN_LENGTH)


def _public_name(label: str, number: int, tokens: Iterable[str], taken: set[str]) -> str:
    """The label, unless it is empty or holds what identifies the patient; unique."""
    name = "".join(c for c in " ".join(label.split()) if c.isprintable())[:MAX_NAME_LENGTH].strip()
    if not name or set(re.split(r"[\W_]+", name.lower())) & set(tokens) or re.search(r"\d{6}", name):
        name = f"Segment {number}"
    base, count = name, 1
    while name in taken:
        count += 1
        name = f"{base[: MAX_NAME_LENGTH - 5]} ({count})"
    return name
