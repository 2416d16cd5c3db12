"""LIDC-IDRI: the XML of several readers beside a CT series -> annotations, instances and findings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from consilium.cases.case import Finding, Instance, State
from consilium.cases.draft import AnnotationDraft
from consilium.errors import DataError
from consilium.geometry.volume import Grid
from consilium.importers.lidc_nodules import (
    Nodule,
    VoxelReading,
    cluster_readings,
    decode,
    encode,
    voxels_of_reading,
)
from consilium.importers.lidc_xml import Outline, PointMark, ReadMessage, Session, read_lidc_xml
from consilium.types import Array

NODULE = "Nodule"
SMALL_NODULE = "Nodule under 3 mm"
NON_NODULE = "Non-nodule"
UNKNOWN_DIAMETER_MM = -1.0
"""Of points, which have no outline; LUNA16's lists write the same."""
USUAL_READERS = 4
BY_POSITION = "outline(s) name no slice of the series; they were placed by their z position."


@dataclass(frozen=True)
class LidcAnnotations:
    """What the readers of one CT series say, placed on its grid."""

    annotations: tuple[AnnotationDraft, ...]
    instances: tuple[Instance, ...]
    findings: tuple[Finding, ...]


def annotations_from_lidc(
    xml_paths: Sequence[Path],
    sop_uids_in_order: Sequence[str],
    grid: Grid,
    *,
    series_instance_uid: str | None = None,
) -> LidcAnnotations:
    """Place the readings of a CT series on its grid and find out which of them are the same nodule.

    Args:
        xml_paths: The XML files beside the series.
        sop_uids_in_order: SOP Instance UID of each slice of the grid, along Z; "" where it was interpolated.
        grid: Of the series as scanned: Y counts image rows, X image columns.
        series_instance_uid: If given, files that read another series are left out with a finding.

    Returns:
        Annotations of the structure "Nodule": per reader ("reader-1" … in the XML's order; absent where one
        marked no nodule of 3 mm or more) and at each agreement level ("agreement-1" …, derived: outlined by
        at least so many); voxels hold the nodule's number. Instances: the nodules, and as points of diameter
        −1 the "Nodule under 3 mm" and "Non-nodule" marks.

    Raises:
        RefusedInput: If a file cannot be read.
        DataError: If there is one slice too many or too few, or no file reads this series.
    """
    if len(sop_uids_in_order) != grid.shape_zyx[0]:
        raise DataError(
            f"LIDC: every slice of the grid must have its UID; found {len(sop_uids_in_order)} for "
            f"{grid.shape_zyx[0]} slices."
        )
    sessions, findings = choose_sessions([read_lidc_xml(p) for p in xml_paths], series_instance_uid)
    slices = _Slices(sop_uids_in_order, grid)
    voxel_readings, more = _place(sessions, slices, grid)
    nodules = cluster_readings(voxel_readings)
    marked = {k for k, session in enumerate(sessions) if session.readings}
    split = sum(len(n.readings) - len(n.readers) for n in nodules)
    if split:
        more.append(
            _finding("lidc-split-reading", split, "reading(s) are further pieces of a reader's own nodule.")
        )
    instances = [_nodule_instance(k, nodule) for k, nodule in enumerate(nodules, start=1)]
    instances += _points(sessions, slices, grid)
    return LidcAnnotations(
        annotations=_annotations(nodules, marked, len(sessions), grid),
        instances=tuple(instances),
        findings=(*findings, *more),
    )


def choose_sessions(
    messages: Sequence[ReadMessage], series_instance_uid: str | None = None
) -> tuple[tuple[Session, ...], list[Finding]]:
    """The sessions to take from the XML files of one series; each is one reader.

    Files of another series are left out, and so is a session that repeats another's outlines to the pixel: it
    is the same reader's. If the files hold four sessions or fewer together they are pooled, in the order of
    their dates; else the file served last is taken (the one with more sessions, if of one time), because the
    others are its earlier versions.

    Raises:
        DataError: If no file reads this series.
    """
    findings: list[Finding] = []
    own = [m for m in messages if series_instance_uid in (None, m.series_instance_uid)]
    if len({m.series_instance_uid for m in own}) > 1:
        raise DataError("LIDC: the XML files must read one series; found several. Name the series.")
    if not own:
        raise DataError(
            f"LIDC: one of the {len(messages)} XML files must read this series; none does. "
            "Put the XML beside the CT that it belongs to."
        )
    if len(own) < len(messages):
        findings.append(
            _finding("lidc-other-series", len(messages) - len(own), "XML file(s) read another series.")
        )
    distinct = list({m.sha256: m for m in own}.values())
    ordered = sorted(distinct, key=lambda m: (m.served, len(m.sessions), m.sha256))
    pooled = _without_repeats([s for m in ordered for s in m.sessions])
    last = _without_repeats(ordered[-1].sessions)
    chosen = pooled if len(pooled) <= max(USUAL_READERS, len(last)) else last
    if len(own) > 1:
        which = "their sessions were pooled" if chosen is pooled else "the one served last was taken"
        findings.append(_finding("lidc-several-xml", len(own), f"XML files read this series; {which}."))
    repeats = sum(len(m.sessions) for m in distinct) - len(pooled)
    if repeats:
        text = "session(s) repeat the outlines of another one and were left out."
        findings.append(_finding("lidc-repeated-session", repeats, text))
    if len(chosen) != USUAL_READERS:
        findings.append(_finding("lidc-reader-count", len(chosen), "readers; usual are 4."))
    return tuple(chosen), findings


class _Slices:
    """Which slice of the series an outline or point lies on: by SOP Instance UID, else by position."""

    def __init__(self, sop_uids: Sequence[str], grid: Grid) -> None:
        self._by_uid = {uid: k for k, uid in enumerate(sop_uids) if uid}
        index = np.zeros((len(sop_uids), 3))
        index[:, 0] = np.arange(len(sop_uids))
        self._positions_z_mm = grid.affine.to_points(index)[:, 2]
        self._tolerance_mm = abs(float(grid.affine.matrix[2, 0])) / 2
        self.by_position = 0

    def find(self, mark: Outline | PointMark) -> int | None:
        index = self._by_uid.get(mark.sop_instance_uid)
        if index is not None:
            return index
        distances = np.abs(self._positions_z_mm - mark.position_z_mm)
        nearest = int(np.argmin(distances))
        if not distances[nearest] <= self._tolerance_mm:
            return None
        self.by_position += 1
        return nearest


def _place(
    sessions: Sequence[Session], slices: _Slices, grid: Grid
) -> tuple[list[VoxelReading], list[Finding]]:
    """Every reading that has voxels on the grid, and what was noticed on the way."""
    placed: list[VoxelReading] = []
    lost = clipped = empty = 0
    for reader, session in enumerate(sessions):
        for reading in session.readings:
            voxels, missing = voxels_of_reading(reading, slices.find)
            inside = (voxels < grid.shape_zyx).all(axis=1)
            lost += missing
            clipped += int((~inside).sum())
            if inside.any():
                placed.append(VoxelReading.of(reader, voxels[inside], grid.affine, reading))
            else:
                empty += 1
    outlines = [o for s in sessions for r in s.readings for o in r.outlines]
    short = sum(len(o.points_xy) < 3 for o in outlines)
    opened = sum(o.is_open for o in outlines)
    duplicated = sum(s.duplicated_ids for s in sessions)
    counted = [
        ("lidc-slice-by-position", slices.by_position, BY_POSITION),
        ("lidc-outline-outside-series", lost, "outline(s) lie on no slice of the series and were left out."),
        ("lidc-outline-outside-image", clipped, "outlined voxel(s) lie outside the image and were left out."),
        ("lidc-reading-without-voxels", empty, "nodule reading(s) enclose no voxel."),
        ("lidc-short-outline", short, "outline(s) of a nodule have one or two points and enclose nothing."),
        ("lidc-open-outline", opened, "outline(s) were open and were closed by a straight line."),
        ("lidc-duplicated-id", duplicated, "reading(s) have the id of another one and stay apart from it."),
    ]
    return placed, [_finding(code, count, text) for code, count, text in counted if count]


def _annotations(
    nodules: Sequence[Nodule], marked: set[int], readers: int, grid: Grid
) -> tuple[AnnotationDraft, ...]:
    drafts = []
    for reader in range(readers):
        draw = partial(_labelled, [n.voxels_of(reader) for n in nodules], grid)
        drafts.append(_draft(f"reader-{reader + 1}", draw if reader in marked else None, derived=False))
    voxels, votes, owners = _agreement(nodules)
    for level in range(1, readers + 1):
        kept = votes >= level
        parts = [voxels[kept & (owners == k)] for k in range(len(nodules))]
        draw = partial(_labelled, parts, grid)
        drafts.append(_draft(f"agreement-{level}", draw if kept.any() else None, derived=True))
    return tuple(drafts)


def _draft(reader: str, mask: Callable[[], Array] | None, *, derived: bool) -> AnnotationDraft:
    state = State.ABSENT if mask is None else State.CONTOURED
    return AnnotationDraft(structure=NODULE, reader=reader, state=state, mask=mask, derived=derived)


def _agreement(nodules: Sequence[Nodule]) -> tuple[Array, Array, Array]:
    """Per voxel that anybody outlined: (N, 3) where, (N,) by how many readers, (N,) in which nodule.

    A reader whose outlines of two nodules overlap counts once. The voxel belongs to the nodule that most
    readers took it for.
    """
    if not nodules:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    readers = sorted({reader for n in nodules for reader in n.readers})
    own = [encode(np.concatenate([n.voxels_of(reader) for n in nodules])) for reader in readers]
    voxels, votes = np.unique(np.concatenate([np.unique(codes) for codes in own]), return_counts=True)
    owners, most = np.zeros(len(voxels), np.int64), np.zeros(len(voxels), np.int64)
    for k, nodule in enumerate(nodules):
        inside, count = nodule.voxels_and_votes()
        place = np.searchsorted(voxels, encode(inside))
        more = count > most[place]
        owners[place[more]], most[place[more]] = k, count[more]
    return decode(voxels), votes, owners


def _labelled(voxels_of_nodules: Sequence[Array], grid: Grid) -> Array:
    """(Z, Y, X) with the nodule's number; where two of one reader overlap, the smaller number's."""
    dtype = np.uint8 if len(voxels_of_nodules) < 256 else np.uint16
    labels = np.zeros(grid.shape_zyx, dtype=dtype)
    for number in range(len(voxels_of_nodules), 0, -1):
        z, y, x = voxels_of_nodules[number - 1].T
        labels[z, y, x] = number
    return labels


def _nodule_instance(number: int, nodule: Nodule) -> Instance:
    ratings = {f"reader-{r + 1}": dict(nodule.main_reading(r).source.ratings) for r in nodule.readers}
    x, y, z = nodule.centre_lps_mm
    return Instance(
        structure=NODULE,
        number=number,
        centre_lps_mm=(x, y, z),
        diameter_mm=nodule.diameter_mm,
        readers=tuple(f"reader-{r + 1}" for r in nodule.readers),
        ratings=ratings,
    )


def _points(sessions: Sequence[Session], slices: _Slices, grid: Grid) -> list[Instance]:
    """The marks without an outline that lie in the series, each reader's own."""
    instances = []
    numbers = {SMALL_NODULE: 0, NON_NODULE: 0}
    for reader, session in enumerate(sessions):
        for mark in session.points:
            index = slices.find(mark)
            if index is None:
                continue
            structure = SMALL_NODULE if mark.is_nodule else NON_NODULE
            numbers[structure] += 1
            x, y, z = grid.affine.to_points((index, mark.point_xy[1], mark.point_xy[0]))
            instances.append(
                Instance(
                    structure=structure,
                    number=numbers[structure],
                    centre_lps_mm=(x, y, z),
                    diameter_mm=UNKNOWN_DIAMETER_MM,
                    readers=(f"reader-{reader + 1}",),
                )
            )
    return instances


def _without_repeats(sessions: Sequence[Session]) -> list[Session]:
    """Without the sessions whose outlines repeat an earlier one's; without outlines two readers may agree."""
    seen: set[str] = set()
    kept = []
    for session in sessions:
        fingerprint = session.fingerprint()
        if fingerprint not in seen or not session.readings:
            kept.append(session)
        seen.add(fingerprint)
    return kept


def _finding(code: str, count: int, text: str) -> Finding:
    return Finding(code=code, message=f"{count} {text}")
