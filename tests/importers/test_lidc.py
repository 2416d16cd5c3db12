"""LIDC readings: reading the XML, edge semantics, clustering over readers, and the two real scans."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from consilium.cases.case import State
from consilium.errors import DataError, RefusedInput
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.importers.lidc import NODULE, NON_NODULE, SMALL_NODULE, LidcAnnotations, annotations_from_lidc
from consilium.importers.lidc_nodules import (
    VoxelReading,
    cluster_readings,
    decode,
    encode,
    fill_hole,
    fill_outline,
)
from consilium.importers.lidc_xml import Reading, read_lidc_xml
from tests.data import unpacked

GRID = Grid((10, 64, 64), Affine.from_spacing((2.5, 0.7, 0.7), origin_lps_mm=(-20.0, -20.0, -100.0)))
UIDS = [f"1.2.3.{k}" for k in range(10)]


def roi(
    points: list[tuple[int, int]], slice_index: int, *, inclusion: str = "TRUE", uid: str | None = None
) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    z = -100.0 + 2.5 * slice_index
    uid = UIDS[slice_index] if uid is None else uid
    return (
        f"<roi><imageZposition>{z} </imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def square(x: int, y: int, side: int) -> list[tuple[int, int]]:
    """The line around a square of side x side pixels, drawn one pixel outside it."""
    a, b, c, d = x - 1, y - 1, x + side, y + side
    return [(a, b), (c, b), (c, d), (a, d), (a, b)]


def nodule(*rois: str, name: str = "1", malignancy: int = 3) -> str:
    ratings = f"<characteristics><malignancy>{malignancy}</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{ratings}{''.join(rois)}</unblindedReadNodule>"


def message(
    sessions: list[str],
    *,
    series: str = "1.2",
    namespace: str = "http://www.nih.gov",
    served: str = "2008-08-18",
) -> str:
    body = "".join(f"<readingSession>{s}</readingSession>" for s in sessions)
    return (
        f'<LidcReadMessage xmlns="{namespace}"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid><DateService>{served}</DateService></ResponseHeader>{body}</LidcReadMessage>"
    )


def place(tmp_path: Path, *texts: str, series: str | None = None) -> LidcAnnotations:
    paths = []
    for k, text in enumerate(texts):
        paths.append(tmp_path / f"{k}.xml")
        paths[-1].write_text(text, encoding="utf-8")
    return annotations_from_lidc(paths, UIDS, GRID, series_instance_uid=series)


def masks(placed: LidcAnnotations) -> dict[str, np.ndarray]:
    return {a.reader: a.mask() for a in placed.annotations if a.mask is not None}


def codes(placed: LidcAnnotations) -> set[str]:
    return {f.code for f in placed.findings}


def box_reading(reader: int, start: tuple[int, int, int], size: tuple[int, int, int]) -> VoxelReading:
    voxels = np.argwhere(np.ones(size)) + start
    return VoxelReading.of(reader, voxels, GRID.affine, Reading("", ()))


def test_the_line_of_an_outline_is_outside() -> None:
    mask, corner = fill_outline(np.array(square(10, 20, 4)))
    assert mask.sum() == 16
    assert corner == (19, 9)
    assert not mask[0].any()
    assert not mask[:, 0].any()


def test_the_line_of_a_hole_is_in_the_hole() -> None:
    hole, _ = fill_hole(np.array(square(10, 20, 4)))
    assert hole.sum() == 36
    point, corner = fill_hole(np.array([[5, 7]]))
    assert point.sum() == 1
    assert corner == (7, 5)


@pytest.mark.parametrize("points", [[(3, 4)], [(3, 4), (9, 4)], [(3, 4), (9, 4), (3, 4)]])
def test_one_or_two_points_enclose_nothing(points: list[tuple[int, int]]) -> None:
    mask, _ = fill_outline(np.array(points))
    assert not mask.any()


def test_filling_agrees_with_an_independent_point_in_polygon(rng: np.random.Generator) -> None:
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radius = rng.uniform(5, 15, 40)
        points = np.rint(20 + radius[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])).astype(int)
        mask, (row, column) = fill_outline(points)
        y, x = np.indices(mask.shape)
        pixels = np.column_stack([x.ravel() + column, y.ravel() + row]).astype(float)
        ring = np.vstack([points, points[:1]]).astype(float)
        start, edge = ring[:-1], np.diff(ring, axis=0)
        length = np.maximum((edge**2).sum(axis=1), 1e-9)
        along = np.clip(((pixels[:, None] - start) * edge).sum(axis=-1) / length, 0, 1)
        distance = np.linalg.norm(pixels[:, None] - start - along[..., None] * edge, axis=-1).min(axis=1)
        truth = Polygon(ring).contains_points(pixels) & (distance > 1e-9)
        assert np.array_equal(mask, truth.reshape(mask.shape))


def test_an_open_outline_is_closed_by_a_straight_line(tmp_path: Path) -> None:
    placed = place(tmp_path, message([nodule(roi(square(10, 20, 4)[:-1], 3))] * 1 + [""] * 3))
    assert (masks(placed)["reader-1"] > 0).sum() == 16
    assert "lidc-open-outline" in codes(placed)


def test_a_hole_and_an_island_in_it_come_out_in_any_order(tmp_path: Path) -> None:
    outer, hole = roi(square(10, 10, 20), 3), roi(square(15, 15, 8), 3, inclusion="FALSE")
    island = roi(square(18, 18, 2), 3)
    for k, rois in enumerate([(outer, hole, island), (island, hole, outer)]):
        (tmp_path / str(k)).mkdir()
        placed = place(tmp_path / str(k), message([nodule(*rois), "", "", ""]))
        assert (masks(placed)["reader-1"] > 0).sum() == 400 - 100 + 4


def test_several_outlines_on_one_slice_add_up(tmp_path: Path) -> None:
    placed = place(
        tmp_path, message([nodule(roi(square(10, 10, 3), 3), roi(square(30, 30, 5), 3)), "", "", ""])
    )
    assert (masks(placed)["reader-1"] > 0).sum() == 9 + 25


def test_readers_who_marked_no_nodule_say_absent(tmp_path: Path) -> None:
    point = roi([(30, 30)], 2)
    placed = place(tmp_path, message([nodule(roi(square(10, 10, 5), 3)), "", nodule(point), ""]))
    states = {a.reader: a.state for a in placed.annotations}
    assert states["reader-1"] is State.CONTOURED
    assert [states[f"reader-{k}"] for k in (2, 3, 4)] == [State.ABSENT] * 3
    assert states["agreement-1"] is State.CONTOURED
    assert states["agreement-2"] is State.ABSENT
    assert [a.derived for a in placed.annotations] == [False] * 4 + [True] * 4


def test_points_become_instances_without_a_diameter(tmp_path: Path) -> None:
    non_nodule = (
        "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>-95.0</imageZposition><imageSOP_UID>1.2.3.2"
        "</imageSOP_UID><locus><xCoord>10</xCoord><yCoord>20</yCoord></locus></nonNodule>"
    )
    placed = place(tmp_path, message([nodule(roi([(30, 30)], 2)) + non_nodule, "", "", ""]))
    assert [(i.structure, i.diameter_mm) for i in placed.instances] == [(SMALL_NODULE, -1), (NON_NODULE, -1)]
    assert placed.instances[1].centre_lps_mm == pytest.approx((-13.0, -6.0, -95.0))


def test_a_slice_is_found_by_position_when_its_uid_is_unknown(tmp_path: Path) -> None:
    placed = place(tmp_path, message([nodule(roi(square(10, 10, 5), 3, uid="9.9")), "", "", ""]))
    assert (masks(placed)["reader-1"][3] > 0).sum() == 25
    assert "lidc-slice-by-position" in codes(placed)


def test_an_outline_without_uid_does_not_go_to_an_interpolated_slice(tmp_path: Path) -> None:
    path = tmp_path / "reading.xml"
    path.write_text(message([nodule(roi(square(10, 10, 5), 3, uid="")), "", "", ""]), encoding="utf-8")
    placed = annotations_from_lidc([path], [*UIDS[:7], "", *UIDS[8:]], GRID)
    assert np.flatnonzero(masks(placed)["reader-1"].any(axis=(1, 2))).tolist() == [3]


def test_outlines_outside_the_series_or_image_are_told(tmp_path: Path) -> None:
    far = roi(square(10, 10, 5), 3, uid="9.9").replace("-92.5", "55.0")
    wide = roi(square(60, 10, 8), 3)
    placed = place(tmp_path, message([nodule(far, wide), "", "", ""]))
    assert (masks(placed)["reader-1"] > 0).sum() == 4 * 8
    assert {"lidc-outline-outside-series", "lidc-outline-outside-image"} <= codes(placed)


def test_readings_of_four_readers_become_one_nodule_with_their_ratings(tmp_path: Path) -> None:
    sessions = [nodule(roi(square(10 + k, 10, 8), 3), malignancy=k + 1) for k in range(4)]
    placed = place(tmp_path, message(sessions))
    (only,) = placed.instances
    assert only.structure == NODULE
    assert only.readers == ("reader-1", "reader-2", "reader-3", "reader-4")
    assert [only.ratings[r]["malignancy"] for r in only.readers] == [1, 2, 3, 4]
    votes = np.zeros(64, int)
    for k in range(4):
        votes[10 + k : 18 + k] += 1
    for level in range(1, 5):
        assert (masks(placed)[f"agreement-{level}"] > 0).sum() == 8 * (votes >= level).sum()


def test_mask_values_are_the_numbers_of_the_instances(tmp_path: Path) -> None:
    both = nodule(roi(square(10, 10, 4), 3)) + nodule(roi(square(40, 40, 9), 5))
    placed = place(tmp_path, message([both, both.replace("malignancy>3", "malignancy>4"), "", ""]))
    labelled = masks(placed)["reader-2"]
    for instance in placed.instances:
        z, y, x = np.rint(GRID.affine.to_indices(instance.centre_lps_mm)).astype(int)
        assert labelled[z, y, x] == instance.number
    assert placed.instances[0].diameter_mm > placed.instances[1].diameter_mm


def test_a_nodule_that_one_reader_splits_stays_one() -> None:
    joined = [box_reading(r, (1, 10, 10), (6, 8, 8)) for r in (0, 1, 2)]
    pieces = [box_reading(3, (1, 10, 10), (4, 8, 8)), box_reading(3, (5, 10, 10), (2, 8, 8))]
    (only,) = cluster_readings([*joined, *pieces])
    assert only.readers == (0, 1, 2, 3)
    assert len(only.voxels_of(3)) == 6 * 64


def test_neighbours_that_every_reader_keeps_apart_stay_two() -> None:
    readings = [box_reading(r, (1, 10, 10 + 8 * k), (4, 8, 8)) for r in range(4) for k in range(2)]
    assert [n.readers for n in cluster_readings(readings)] == [(0, 1, 2, 3)] * 2


def test_a_reading_that_bridges_two_nodules_joins_the_better_match() -> None:
    apart = [box_reading(r, (1, 10, 10 + 12 * k), (4, 8, 8)) for r in (0, 1) for k in range(2)]
    bridge = box_reading(2, (1, 10, 10), (4, 8, 14))
    nodules = cluster_readings([*apart, bridge])
    assert sorted(n.readers for n in nodules) == [(0, 1), (0, 1, 2)]


def test_voxel_codes_keep_order_and_come_back(rng: np.random.Generator) -> None:
    voxels = np.unique(rng.integers(0, 2000, (500, 3)), axis=0)
    assert np.array_equal(decode(encode(voxels)), voxels)
    assert (np.diff(encode(voxels)) > 0).all()


def test_duplicated_ids_stay_two_readings(tmp_path: Path) -> None:
    both = nodule(roi(square(10, 10, 4), 3)) + nodule(roi(square(40, 40, 4), 5))
    placed = place(tmp_path, message([both, "", "", ""]))
    assert len(placed.instances) == 2
    assert "lidc-duplicated-id" in codes(placed)


def test_the_same_file_twice_counts_once_and_another_series_not_at_all(tmp_path: Path) -> None:
    own = message([nodule(roi(square(10, 10, 4), 3)), "", "", ""])
    other = message([nodule(roi(square(30, 30, 9), 3)), "", "", ""], series="7.7")
    placed = place(tmp_path, own, own, other, series="1.2")
    assert len(placed.instances) == 1
    assert sum(not a.derived for a in placed.annotations) == 4
    assert {"lidc-several-xml", "lidc-other-series"} <= codes(placed)


def test_of_two_versions_the_one_served_last_is_taken(tmp_path: Path) -> None:
    old = message([nodule(roi(square(10, 10, 4), 3)), "", "", ""], served="2007-01-01")
    new = message([nodule(roi(square(10, 10, 6), 3)), "", "", ""], served="2008-01-01")
    placed = place(tmp_path, new, old)
    assert (masks(placed)["agreement-1"] > 0).sum() == 36


def test_files_that_hold_one_session_each_are_pooled(tmp_path: Path) -> None:
    parts = [message([nodule(roi(square(10 + k, 10, 6), 3))], served=f"2008-01-0{k + 1}") for k in range(4)]
    placed = place(tmp_path, *parts)
    assert placed.instances[0].readers == ("reader-1", "reader-2", "reader-3", "reader-4")


@pytest.mark.parametrize(("sessions", "readers"), [(3, 3), (8, 8)])
def test_three_or_eight_sessions_are_as_many_readers(tmp_path: Path, sessions: int, readers: int) -> None:
    placed = place(tmp_path, message([nodule(roi(square(10 + k, 10, 8), 3)) for k in range(sessions)]))
    assert len(placed.instances[0].readers) == readers
    assert "lidc-reader-count" in codes(placed)
    assert f"agreement-{readers}" in {a.reader for a in placed.annotations}


def test_a_session_that_repeats_the_outlines_of_another_counts_once(tmp_path: Path) -> None:
    sessions = [nodule(roi(square(10 + k, 10, 8), 3)) for k in range(4)]
    placed = place(tmp_path, message(sessions + sessions))
    assert len(placed.instances[0].readers) == 4
    assert "lidc-repeated-session" in codes(placed)


def test_files_without_a_namespace_or_with_another_are_read(tmp_path: Path) -> None:
    text = message([nodule(roi(square(10, 10, 4), 3)), "", "", ""])
    bare = text.replace(' xmlns="http://www.nih.gov"', "")
    for k, variant in enumerate([bare, text.replace("http://www.nih.gov", "urn:other")]):
        path = tmp_path / f"{k}.xml"
        path.write_text(variant, encoding="utf-8")
        assert len(read_lidc_xml(path).sessions[0].readings) == 1


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>'
    "<LidcReadMessage>&b;</LidcReadMessage>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "<LidcReadMessage><unclosed>",
        "<IdriReadMessage/>",
        "<LidcReadMessage/>",
        message([nodule(roi([(1, 1), (2, 70000), (3, 3)], 1))]),
        message([nodule(roi(square(1, 1, 3), 1).replace("<xCoord>0<", "<xCoord>nan<"))]),
        message([nodule(roi(square(1, 1, 3), 1, inclusion="maybe"))]),
    ],
)
def test_a_bomb_or_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.xml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RefusedInput):
        read_lidc_xml(path)


def test_a_wrong_number_of_slices_or_no_file_of_the_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every slice"):
        annotations_from_lidc([], UIDS[:5], GRID)
    with pytest.raises(DataError, match="none does"):
        place(tmp_path, message([""] * 4), series="3.4")


def placed_scan(name: str) -> LidcAnnotations:
    folder = unpacked(f"lidc/{name}")
    (xml,) = folder.rglob("*.xml")
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in xml.parent.glob("*.dcm")]
    headers.sort(key=lambda h: float(h.ImagePositionPatient[2]))
    first, second = (np.array(h.ImagePositionPatient, float) for h in headers[:2])
    affine = Affine.from_dicom(
        position_lps_mm=tuple(first),
        orientation=tuple(float(v) for v in headers[0].ImageOrientationPatient),
        pixel_spacing_mm=tuple(float(v) for v in headers[0].PixelSpacing),
        slice_step_lps_mm=tuple(second - first),
    )
    grid = Grid((len(headers), 512, 512), affine)
    return annotations_from_lidc([xml], [h.SOPInstanceUID for h in headers], grid)


def test_lidc_0001_has_the_known_voxel_counts() -> None:
    placed = placed_scan("LIDC-IDRI-0001")
    voxels = {reader: int((mask > 0).sum()) for reader, mask in masks(placed).items()}
    assert [voxels[f"reader-{k}"] for k in (1, 2, 3, 4)] == [5905, 4613, 4955, 5498]
    assert [voxels[f"agreement-{k}"] for k in (1, 2, 3, 4)] == [6547, 5428, 4812, 4184]
    (only,) = [i for i in placed.instances if i.structure == NODULE]
    assert only.centre_lps_mm == pytest.approx((56.208, 86.343, -115.868), abs=0.3)  # LUNA16's list
    assert only.ratings["reader-4"]["malignancy"] == 4


def test_lidc_0003_has_three_nodules_although_one_reader_splits_one() -> None:
    placed = placed_scan("LIDC-IDRI-0003")
    union = masks(placed)["agreement-1"]
    assert np.bincount(union.ravel())[1:].tolist() == [8456, 867, 330]
    assert "lidc-split-reading" in codes(placed)
    assert all(len(i.readers) == 4 for i in placed.instances if i.structure == NODULE)


EXPECTED = {
    "readings": 5544,
    "small": 10652,
    "non-nodules": 17478,
    "holes": 727,
    "several": 261,
    "open": 54,
    "short": 54,
    "sessions": 3220,
}


@pytest.mark.slow
def test_every_xml_of_the_collection_is_read() -> None:
    folder = unpacked("lidc/lidc-xml")
    counts: Counter[str] = Counter()
    files = [
        Path(root) / name for root, _, names in os.walk(folder) for name in names if name.endswith("xml")
    ]
    for path in files:
        for session in read_lidc_xml(path).sessions:
            outlines = [o for r in session.readings for o in r.outlines]
            counts["sessions"] += 1
            counts["readings"] += len(session.readings)
            counts["small"] += sum(p.is_nodule for p in session.points)
            counts["non-nodules"] += sum(not p.is_nodule for p in session.points)
            counts["holes"] += sum(not o.inclusion for o in outlines)
            counts["open"] += sum(o.is_open for o in outlines)
            counts["short"] += sum(len(o.points_xy) < 3 for o in outlines)
            for reading in session.readings:
                counts["several"] += max(Counter(o.sop_instance_uid for o in reading.outlines).values()) > 1
    assert len(files) == 805
    assert dict(counts) == EXPECTED
