"""An image series from its files: headers checked and ordered, the grid, the volume in Hounsfield units."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from consilium.cases.case import Finding
from consilium.errors import RefusedInput
from consilium.geometry.volume import Volume
from consilium.importers.dicom_file import file_sha256, short_uid
from consilium.importers.pixels import BeyondInt16, SliceReader, StoredSlice
from consilium.importers.slice_order import (
    COSINE_TOLERANCE,
    Orientation,
    Plane,
    SlicePlan,
    order_slices,
    plan_slices,
)
from consilium.types import Progress, Triple, no_progress

COPIED_FILES = "copied-files"
MAX_VOLUME_BYTES = 2**36
"""64 GiB: a series that claims more is damaged or hostile."""


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """One slice: a file, or a frame of a multi-frame file."""

    sop_instance_uid: str
    position_lps_mm: Triple
    orientation: Orientation
    pixel_spacing_mm: tuple[float, float]
    thickness_mm: float
    stored: StoredSlice


@dataclass(frozen=True, kw_only=True)
class SeriesHeader:
    """A series of parallel slices of one patient, study and frame of reference, ordered along their normal.

    Args:
        series_instance_uid, study_instance_uid, frame_of_reference_uid: Checked UIDs; the last may be "".
        modality, sop_class_uid: DICOM's words.
        patient_identity: Patient ID, without its issuer, whom not every object names; "" if not given.
            Private.
        slices: In any order; kept ordered along the normal of the slices, so that ``slices[k]`` is slice k of
            the volume of a series without gaps.
        findings: What the scan noticed.

    Raises:
        RefusedInput: If sizes, orientations, pixel spacings or formats are mixed.
    """

    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    modality: str
    sop_class_uid: str
    patient_identity: str
    slices: tuple[SliceHeader, ...]
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        if not self.slices:
            raise RefusedInput(self.name, "must have at least one slice; found none.", "Export it again.")
        self.plane.check(self.name)
        _check_alike(self.slices, self.name)
        positions = np.array([s.position_lps_mm for s in self.slices])
        object.__setattr__(self, "slices", tuple(self.slices[k] for k in order_slices(positions, self.plane)))

    @property
    def name(self) -> str:
        """How messages call it: ``"series …7213"``."""
        return f"series {short_uid(self.series_instance_uid)}"

    @cached_property
    def plane(self) -> Plane:
        """What the slices have in common."""
        first = self.slices[0]
        return Plane(
            orientation=first.orientation,
            pixel_spacing_mm=first.pixel_spacing_mm,
            shape_yx=first.stored.format.shape_yx,
            thickness_mm=first.thickness_mm,
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file once, in slice order."""
        return tuple(dict.fromkeys(s.stored.path for s in self.slices))

    def plan(self, *, allow_missing_slices: bool = False) -> SlicePlan:
        """The grid, where each of its slices comes from, and what a person should know of it.

        Raises:
            RefusedInput: As `plan_slices`.
        """
        positions = np.array([s.position_lps_mm for s in self.slices])
        return plan_slices(positions, self.plane, where=self.name, allow_missing_slices=allow_missing_slices)


def read_series(
    header: SeriesHeader,
    *,
    allow_missing_slices: bool = False,
    progress: Progress = no_progress,
) -> tuple[Volume, tuple[Finding, ...]]:
    """The volume of a series, each slice rescaled by its own slope and intercept.

    Args:
        header: From `consilium.importers.dicom_scan.scan_dicom`.
        allow_missing_slices: See `plan_slices`.
        progress: Told about every slice.

    Returns:
        (Z, Y, X) int16 in HU (CT) or the modality's unit: exact. float32 where slopes or values do not fit
        int16. And what a person should know of it.

    Raises:
        RefusedInput: If the slices do not lie on a regular grid, or their pixels cannot be read.
    """
    plan = header.plan(allow_missing_slices=allow_missing_slices)
    if plan.grid.voxels * 4 > MAX_VOLUME_BYTES:
        raise RefusedInput(
            header.name,
            f"a volume must be smaller than {MAX_VOLUME_BYTES // 2**30} GiB; its headers claim "
            f"{plan.grid.shape_zyx} voxels.",
            "Export it again.",
        )
    whole = all(s.stored.is_integral for s in header.slices)
    try:
        volume = _read_slices(header, plan, np.dtype(np.int16 if whole else np.float32), progress)
    except BeyondInt16:
        volume = _read_slices(header, plan, np.dtype(np.float32), progress)
    return volume, (*header.findings, *plan.findings)


def series_sha256(header: SeriesHeader) -> str:
    """Digest of the series' bytes, independent of the files' names and order."""
    digests = sorted(file_sha256(path) for path in header.paths)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_slices(
    header: SeriesHeader, plan: SlicePlan, dtype: np.dtype[np.generic], progress: Progress
) -> Volume:
    reader = SliceReader(header.name, clip_padding=header.modality == "CT")
    array = np.empty(plan.grid.shape_zyx, dtype=dtype)
    total = len(plan.sources)
    for k, source in enumerate(plan.sources):
        if source.is_stored:
            reader.read(header.slices[source.lower].stored, array[k])
        else:
            ends = np.empty((2, *array.shape[1:]), dtype=np.float32)
            reader.read(header.slices[source.lower].stored, ends[0])
            reader.read(header.slices[source.upper].stored, ends[1])
            mixed = ends[0] + np.float32(source.weight) * (ends[1] - ends[0])
            array[k] = np.rint(mixed) if dtype == np.int16 else mixed
        progress("reading slices", k + 1, total)
    return Volume(array, plan.grid)


def _check_alike(slices: Sequence[SliceHeader], where: str) -> None:
    first = slices[0]
    checks: list[tuple[str, Callable[[SliceHeader], str], str]] = [
        ("size (rows, columns)", lambda s: str(s.stored.format.shape_yx), "voxels"),
        ("pixel spacing (rows, columns)", lambda s: str(s.pixel_spacing_mm), "mm"),
    ]
    for what, value, unit in checks:
        others = {value(s) for s in slices} - {value(first)}
        if others:
            raise RefusedInput(
                where,
                f"all slices must have one {what}; found {value(first)} and "
                f"{', '.join(sorted(others)[:3])} {unit}.",
                "The series joins several acquisitions: export each as a series of its own.",
                code="mixed-slices",
            )
    directions = np.array([s.orientation for s in slices])
    off = np.abs(directions - directions[0]).max(axis=1)
    if off.max() > COSINE_TOLERANCE:
        other = tuple(round(float(c), 4) for c in directions[int(off.argmax())])
        raise RefusedInput(
            where,
            f"all slices must have one orientation; found {first.orientation} and {other}.",
            "Localizers or reformats are among the slices: export them as series of their own.",
            code="mixed-slices",
        )
    seen: set[tuple[str, int]] = set()
    for s in slices:
        key = (s.sop_instance_uid, s.stored.frame_index)
        if key in seen:
            raise RefusedInput(
                where,
                f"every instance must be there once; {short_uid(s.sop_instance_uid)} is there twice.",
                "Remove the copies of files.",
                code=COPIED_FILES,
            )
        seen.add(key)
