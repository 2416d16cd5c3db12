"""The checks behind ``consilium commission``: every shape on every grid, through files and two readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.path import Path as PolygonPath

from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks
from consilium.geometry.affine import Affine
from consilium.geometry.contours import mask_from_polygons
from consilium.geometry.volume import Grid, Volume
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.rtstruct import annotations_from_rtstruct, read_rtstruct
from consilium.pages.pictures import Panel, draw_panels
from consilium.phantoms.dicom import SeriesIdentity, slice_of, write_patient, write_structures
from consilium.phantoms.shapes import line_mask, orientations, shapes
from consilium.types import FloatArray, Mask, Progress, Triple

MIN_DICE = 0.999
MAX_VOLUME_ERROR = 0.01
SIGNIFICANT_CM3 = 2.0
MAX_DECIMAL_STRING = 16
ALGORITHM = Algorithm(name="consilium commission", model_sha256="0" * 64)
LINES = ("line along Z", "line along Y", "line along X")
EXTENT_ZYX_MM = (60.0, 72.0, 78.0)
LOST_SLICES = (7, 8, 13)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One shape on one grid.

    Args:
        grid: Name.
        shape: Name.
        paper_cm3: Closed-form areas times slice distance.
        voxels_cm3: What the importer makes of it.
        volume_error: Relative; None where the volume is not over `SIGNIFICANT_CM3`.
        dice: Between importer and independent reader, on the planning system's contours.
        round_trip_dice: The lower of: importer, independent reader by exclusive or, and by union.
        fewest_points: Of a contour that was written.
        longest_string: Bytes of the longest decimal string that was written.
    """

    grid: str
    shape: str
    paper_cm3: float
    voxels_cm3: float
    volume_error: float | None
    dice: float
    round_trip_dice: float
    fewest_points: int
    longest_string: int

    @property
    def fault(self) -> str:
        """What failed; "" if nothing."""
        faults = {
            "volume": self.volume_error is not None and abs(self.volume_error) > MAX_VOLUME_ERROR,
            "Dice": self.dice < MIN_DICE,
            "round trip": self.round_trip_dice < 1.0,
            "points": self.fewest_points < 3,
            "string length": self.longest_string > MAX_DECIMAL_STRING,
        }
        return ", ".join(name for name, failed in faults.items() if failed)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.fault


def check_everything(scratch: Path, progress: Progress) -> list[Row]:
    """Every shape on 48 orientations, an oblique grid, anisotropic ones, and a series with lost slices."""
    grids = [(name, standard_grid(axes)) for name, axes in orientations()]
    axes = dict(orientations())
    for name, spacing in (("coarse slices", (5.0, 0.8, 0.8)), ("fine slices", (1.0, 1.5, 0.6))):
        grids += [(f"{name}, {kind}", _grid(spacing, axes[kind])) for kind in ("SPL", "oblique")]
    rows: list[Row] = []
    for done, (name, grid) in enumerate(grids):
        progress("checking grids", done, len(grids) + 1)
        rows += check_grid(name, grid, scratch)
    rows += check_lost_slices(scratch)
    progress("checking grids", len(grids) + 1, len(grids) + 1)
    return rows


def draw_shapes() -> list[tuple[str, bytes]]:
    """Pictures of the shapes as masks, with the outlines that are written: caption and PNG."""
    pictures = []
    axes = dict(orientations())
    for kind in ("SPL", "oblique"):
        grid = standard_grid(axes[kind])
        panels = []
        for shape in shapes():
            mask = mask_from_polygons(shape.polygons(grid), grid)
            middle = grid.shape_zyx[0] // 2
            for title, plane, spacing in (
                ("slice", mask[middle], grid.spacing_zyx_mm[1:]),
                ("across", mask[:, grid.shape_zyx[1] // 2], grid.spacing_zyx_mm[::2]),
            ):
                panel = Panel(
                    title=f"{shape.name}, {title}",
                    image=plane.astype(np.float32),
                    outlines={"voxels": plane},
                    spacing_yx=(spacing[0], spacing[1]),
                    window=(0.0, 2.0),
                )
                panels.append(panel)
        pictures.append((f"Orientation {kind}: what the importer fills.", draw_panels(panels, columns=4)))
    return pictures


def check_grid(name: str, grid: Grid, scratch: Path) -> list[Row]:
    """Every shape and a line along each axis on one grid."""
    identity = SeriesIdentity(label=f"commission {name}")
    positions = grid.affine.to_points([(z, 0, 0) for z in range(grid.shape_zyx[0])])
    instances = {z: identity.uid("instance", z) for z in range(grid.shape_zyx[0])}
    given = {shape.name: shape.polygons(grid) for shape in shapes()}
    path = scratch / "planning.dcm"
    write_structures(path, given, grid, identity, instances=instances, decimals=4)
    masks = _import(path, grid, identity, list(instances.values()))
    truth = _independent(_read_plainly(path)[0], grid, union=False)
    paper = {shape.name: shape.contoured_volume_cm3(grid) for shape in shapes()}
    for axis, line in enumerate(LINES):
        masks[line] = truth[line] = line_mask(grid, axis)
        paper[line] = grid.shape_zyx[axis] * grid.voxel_volume_cm3
    reference = SeriesReference(
        patient={"PatientName": "Phantom^Commission", "PatientID": "COMMISSION"},
        study={"StudyInstanceUID": identity.uid("study")},
        series_instance_uid=identity.uid("series", "CT"),
        frame_of_reference_uid=identity.uid("frame of reference"),
        slices=tuple((instances[z], (float(x), float(y), float(s))) for z, (x, y, s) in enumerate(positions)),
    )
    return _rows(name, grid, masks, truth, paper, _Trip(scratch / "ours.dcm", reference, identity))


def check_lost_slices(scratch: Path) -> list[Row]:
    """A CT series with a gap: contours only on the slices that are there, the others stay empty."""
    identity = SeriesIdentity(label="commission lost slices")
    whole = standard_grid(dict(orientations())["oblique"])
    given = {shape.name: shape.polygons(whole) for shape in shapes()}
    image = Volume(np.zeros(whole.shape_zyx, dtype=np.int16), whole)
    folder = write_patient(scratch / "lost", image, given, identity, leave_out=LOST_SLICES)
    (series,) = scan_dicom(sorted((folder / "ct").iterdir())).series
    plan = series.plan(allow_missing_slices=True)
    masks = _import(folder / "rtstruct.dcm", plan.grid, identity, [s.sop_instance_uid for s in series.slices])
    kept = {
        name: [p for p in polygons if slice_of(p, whole) not in LOST_SLICES]
        for name, polygons in given.items()
    }
    count = {name: len({slice_of(p, whole) for p in polygons}) for name, polygons in kept.items()}
    for name, mask in masks.items():
        if int(mask.any(axis=(1, 2)).sum()) != count[name]:
            masks[name] = np.zeros_like(mask)
    truth = _independent(_read_plainly(folder / "rtstruct.dcm")[0], plan.grid, union=False)
    paper = {shape.name: shape.contoured_volume_cm3(whole, LOST_SLICES) for shape in shapes()}
    reference = SeriesReference(
        patient={"PatientName": "Phantom^Commission", "PatientID": "COMMISSION"},
        study={"StudyInstanceUID": series.study_instance_uid},
        series_instance_uid=series.series_instance_uid,
        frame_of_reference_uid=series.frame_of_reference_uid,
        slices=tuple((s.sop_instance_uid, s.position_lps_mm) for s in series.slices),
    )
    trip = _Trip(scratch / "ours.dcm", reference, identity)
    return _rows("lost slices, oblique", plan.grid, masks, truth, paper, trip)


@dataclass(frozen=True)
class _Trip:
    """Where a round trip writes to and for which series."""

    path: Path
    reference: SeriesReference
    identity: SeriesIdentity


def _rows(
    name: str,
    grid: Grid,
    masks: Mapping[str, Mask],
    truth: Mapping[str, Mask],
    paper: Mapping[str, float],
    trip: _Trip,
) -> list[Row]:
    export_rtstruct(
        trip.path, rois_from_masks(masks.items(), grid), grid, trip.reference, algorithm=ALGORITHM
    )
    contours, longest = _read_plainly(trip.path)
    back = [
        _import(trip.path, grid, trip.identity, [uid for uid, _ in trip.reference.slices]),
        _independent(contours, grid, union=False),
        _independent(contours, grid, union=True),
    ]
    rows = []
    for shape, mask in masks.items():
        volume = np.count_nonzero(mask) * grid.voxel_volume_cm3
        rows.append(
            Row(
                grid=name,
                shape=shape,
                paper_cm3=paper[shape],
                voxels_cm3=volume,
                volume_error=volume / paper[shape] - 1 if paper[shape] > SIGNIFICANT_CM3 else None,
                dice=_dice(mask, truth[shape]),
                round_trip_dice=min(_dice(mask, masks_back[shape]) for masks_back in back),
                fewest_points=min((len(points) for points in contours[shape]), default=0),
                longest_string=longest,
            )
        )
    return rows


def standard_grid(axes: FloatArray) -> Grid:
    """The grid that every orientation is checked on: 3 × 1.25 × 1 mm."""
    return _grid((3.0, 1.25, 1.0), axes)


def _grid(spacing_zyx_mm: Triple, axes: FloatArray) -> Grid:
    z, y, x = (round(e / s) for e, s in zip(EXTENT_ZYX_MM, spacing_zyx_mm, strict=True))
    origin = (-31.25, 17.5, 402.125)
    return Grid((z, y, x), Affine.from_spacing(spacing_zyx_mm, origin_lps_mm=origin, axes_lps=axes))


def _import(path: Path, grid: Grid, identity: SeriesIdentity, sop_uids: Sequence[str]) -> dict[str, Mask]:
    placed = annotations_from_rtstruct(
        read_rtstruct(path),
        grid,
        sop_uids=sop_uids,
        frame_of_reference_uid=identity.uid("frame of reference"),
    )
    return {
        a.structure: np.asarray(np.zeros(grid.shape_zyx, dtype=bool) if a.mask is None else a.mask())
        for a in placed.annotations
    }


def _independent(contours: Mapping[str, Sequence[FloatArray]], grid: Grid, *, union: bool) -> dict[str, Mask]:
    """Point in polygon at voxel centres by matplotlib, sharing no code with the importer."""
    inverse = np.linalg.inv(grid.affine.matrix)
    _, ny, nx = grid.shape_zyx
    masks = {}
    for name, polygons in contours.items():
        mask = np.zeros(grid.shape_zyx, dtype=bool)
        for points in polygons:
            index = np.c_[points, np.ones(len(points))] @ inverse.T
            z = int(np.rint(index[:, 0].mean()))
            low = np.clip(np.floor(index[:, 1:3].min(axis=0)), 0, (ny, nx)).astype(int)
            high = np.clip(np.ceil(index[:, 1:3].max(axis=0)) + 1, 0, (ny, nx)).astype(int)
            y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
            centres = np.stack([y.ravel(), x.ravel()], axis=1)
            inside = np.zeros((ny, nx), dtype=bool)
            inside[low[0] : high[0], low[1] : high[1]] = (
                PolygonPath(index[:, 1:3]).contains_points(centres).reshape(y.shape)
            )
            mask[z] = mask[z] | inside if union else mask[z] ^ inside
        masks[name] = mask
    return masks


def _read_plainly(path: Path) -> tuple[dict[str, list[FloatArray]], int]:
    """Contours of each structure by plain pydicom, and bytes of the longest decimal string."""
    dataset = pydicom.dcmread(path)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    contours: dict[str, list[FloatArray]] = {}
    longest = 0
    for item in dataset.ROIContourSequence:
        found = contours.setdefault(names[item.ReferencedROINumber], [])
        for contour in item.get("ContourSequence", []):
            raw = contour.get_item("ContourData").value
            longest = max(longest, *(len(text) for text in raw.rstrip(b" ").split(b"\\")))
            found.append(np.array([float(v) for v in contour.ContourData]).reshape(-1, 3))
    return contours, longest


def _dice(a: Mask, b: Mask) -> float:
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 0.0
