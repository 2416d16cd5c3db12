"""Do the nodules clustered from LIDC's XML agree with LUNA16's (outlined by at least 3 of 4 readers)?

``ours`` is the percentage of LUNA16's nodules that have a nodule of ours, seen by at least three readers,
with its centre within 2 mm; ``limit`` is 99 %; ``ratio`` is ours / limit.

LUNA16's coordinates are in the patient; the XML gives columns and rows. Where the CT is not at hand, origin
and pixel spacing (negative for a patient lying prone) of each series are fitted to the points (non-nodules
and nodules under 3 mm) that stand in both the XML and LUNA16's list of excluded findings; the nodules
compared take no part in the fit. Of series without two such points only z is compared, and counted apart.

    python -m benchmarks.lidc_nodules XML_FOLDER LUNA16_FOLDER [--quick]
"""

import argparse
import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import report
from consilium.geometry.affine import Affine
from consilium.importers.lidc import choose_sessions
from consilium.importers.lidc_nodules import Nodule, VoxelReading, cluster_readings, voxels_of_reading
from consilium.importers.lidc_xml import Session, read_lidc_xml

TOLERANCE_MM = 2.0
LIMIT_PERCENT = 99.0
FIT_TOLERANCE_MM = 0.02
QUICK_SERIES = 100


@dataclass(frozen=True)
class Fit:
    """Origin and pixel spacing of a series, and the number of points behind them."""

    origin_xy_mm: tuple[float, float]
    pixel_mm: float
    points: int
    residual_mm: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("xml", type=Path)
    parser.add_argument("luna16", type=Path)
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_SERIES} series only")
    arguments = parser.parse_args()
    wanted = read_rows(arguments.luna16 / "annotations.csv")
    excluded = read_rows(arguments.luna16 / "annotations_excluded.csv")
    files = sorted(arguments.xml.rglob("*.xml"))[: QUICK_SERIES if arguments.quick else None]
    counts: Counter[str] = Counter()
    distances: list[float] = []
    residuals: list[float] = []
    diameter_ratios: list[float] = []
    for path in files:
        message = read_lidc_xml(path)
        sessions, _ = choose_sessions([message])
        count(sessions, counts)
        truth = wanted.get(message.series_instance_uid, np.zeros((0, 4)))
        if not len(truth):
            continue
        fit = fit_geometry(sessions, excluded.get(message.series_instance_uid, np.zeros((0, 4))))
        if fit is None:
            compare_z(sessions, truth, counts)
            continue
        counts["series compared"] += 1
        residuals.append(fit.residual_mm)
        nodules = cluster(sessions, fit)
        compare(path, truth, nodules, distances, diameter_ratios)
    for name, number in counts.items():
        print(f"{name}: {number}")
    found = np.array(distances)
    print(f"LUNA16 nodules compared: {len(found)}; centre distance median {np.median(found):.3f} mm, "
          f"99th percentile {np.percentile(found, 99):.3f} mm")  # fmt: skip
    print(f"largest residual of a fit: median {np.median(residuals):.4f}, maximum {max(residuals):.4f} mm")
    print(f"diameter ours / LUNA16: median {np.median(diameter_ratios):.3f}")
    ours = float((found <= TOLERANCE_MM).mean() * 100)
    report(
        "LUNA16 nodules with a clustered nodule of at least three readers within 2 mm",
        "%",
        ours,
        {},
        limit=LIMIT_PERCENT,
        ratio=ours / LIMIT_PERCENT,
    )


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Series -> (N, 4) x, y, z, diameter in mm."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.reader(file):
            if row[0] != "seriesuid":
                rows[row[0]].append([float(v) for v in row[1:5]])
    return {series: np.array(values) for series, values in rows.items()}


def count(sessions: Sequence[Session], counts: Counter[str]) -> None:
    """Add up what the XML holds, in the words of the data's own description."""
    counts["series"] += 1
    for session in sessions:
        counts["reading sessions"] += 1
        counts["outlines of nodules of 3 mm and more"] += len(session.readings)
        counts["nodules under 3 mm"] += sum(p.is_nodule for p in session.points)
        counts["non-nodules"] += sum(not p.is_nodule for p in session.points)
        for reading in session.readings:
            counts["exclusion outlines"] += sum(not o.inclusion for o in reading.outlines)
            counts["open outlines"] += sum(o.is_open for o in reading.outlines)
            counts["outlines of one or two points"] += sum(len(o.points_xy) < 3 for o in reading.outlines)
            slices = Counter(o.sop_instance_uid for o in reading.outlines)
            counts["nodules with several outlines on a slice"] += max(slices.values()) > 1


def fit_geometry(sessions: Sequence[Session], listed: np.ndarray) -> Fit | None:
    """Origin and pixel spacing from points at the same z in both lists; None below two agreeing points."""
    marks = np.array([(*p.point_xy, p.position_z_mm) for s in sessions for p in s.points]).reshape(-1, 3)
    pairs = [(i, j) for i, m in enumerate(marks) for j, c in enumerate(listed) if abs(m[2] - c[2]) < 0.01]
    if len(pairs) < 2:
        return None
    pixels = np.array([marks[i, :2] for i, _ in pairs])
    points = np.array([listed[j, :2] for _, j in pairs])
    rng = np.random.default_rng(0)
    best = np.zeros(len(pairs), bool)
    for _ in range(3000):
        a, b = rng.integers(0, len(pairs), 2)
        step = pixels[a] - pixels[b]
        if abs(step).max() < 20:
            continue
        axis = int(np.argmax(abs(step)))
        spacing = (points[a] - points[b])[axis] / step[axis]
        if not 0.3 < abs(spacing) < 1.2:
            continue
        residual = np.abs(points - points[a] - spacing * (pixels - pixels[a])).max(axis=1)
        inside = residual < FIT_TOLERANCE_MM
        if inside.sum() > best.sum():
            best = inside
    if len({tuple(p) for p in pixels[best]}) < 2:
        return None
    fit = refine(pixels[best], points[best])
    return fit if fit.residual_mm < FIT_TOLERANCE_MM else None


def refine(pixels: np.ndarray, points: np.ndarray) -> Fit:
    """Least squares of one spacing and two offsets."""
    n = len(pixels)
    design = np.zeros((2 * n, 3))
    design[:n, 0], design[:n, 1] = pixels[:, 0], 1
    design[n:, 0], design[n:, 2] = pixels[:, 1], 1
    values = np.concatenate([points[:, 0], points[:, 1]])
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = float(np.abs(design @ solution - values).max())
    return Fit((float(solution[1]), float(solution[2])), float(solution[0]), n, residual)


def cluster(sessions: Sequence[Session], fit: Fit) -> tuple[Nodule, ...]:
    """The nodules on a grid made from the fit and the z positions of the marks."""
    marks = [o for s in sessions for r in s.readings for o in r.outlines]
    positions = np.unique([m.position_z_mm for m in marks + [p for s in sessions for p in s.points]])
    gaps = np.diff(positions)
    step = float(gaps[gaps > 0.01].min()) if (gaps > 0.01).any() else 1.0
    low = float(positions[0])
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2], matrix[3, 3] = step, fit.pixel_mm, fit.pixel_mm, 1
    matrix[:3, 3] = *fit.origin_xy_mm, low
    affine = Affine(matrix)
    readings = []
    for reader, session in enumerate(sessions):
        for reading in session.readings:
            voxels, _ = voxels_of_reading(reading, lambda o: round((o.position_z_mm - low) / step))
            if len(voxels):
                readings.append(VoxelReading.of(reader, voxels, affine, reading))
    return cluster_readings(readings)


def compare_z(sessions: Sequence[Session], truth: np.ndarray, counts: Counter[str]) -> None:
    """Count LUNA16's nodules that have one of ours, of three readers and more, within 2 mm in z."""
    nodules = cluster(sessions, Fit((0.0, 0.0), 0.7, 0, 0.0))
    heights = np.array([n.centre_lps_mm[2] for n in nodules if len(n.readers) >= 3] or [np.inf])
    counts["nodules of LUNA16 in series without a fit"] += len(truth)
    counts["of these within 2 mm in z"] += sum(
        bool(abs(heights - z).min() <= TOLERANCE_MM) for z in truth[:, 2]
    )


def compare(
    path: Path,
    truth: np.ndarray,
    nodules: Sequence[Nodule],
    distances: list[float],
    diameter_ratios: list[float],
) -> None:
    """Distance of each LUNA16 nodule to ours of three readers and more; those beyond 2 mm are printed."""
    sure = [n for n in nodules if len(n.readers) >= 3]
    for row in truth:
        gaps = [float(np.linalg.norm(n.centre_lps_mm - row[:3])) for n in sure]
        nearest = int(np.argmin(gaps)) if gaps else -1
        distances.append(gaps[nearest] if gaps else np.inf)
        if distances[-1] <= TOLERANCE_MM:
            diameter_ratios.append(sure[nearest].diameter_mm / row[3])
            continue
        near = sorted(
            ((float(np.linalg.norm(n.centre_lps_mm - row[:3])), n.diameter_mm, n) for n in nodules),
            key=lambda x: x[0],
        )[:2]
        ours = "; ".join(f"{gap:.1f} mm off, {size:.1f} mm, by {_readers(n)}" for gap, size, n in near)
        print(f"beyond 2 mm: {path.parent.name}/{path.name}, {row[3]:.1f} mm. Ours: {ours}")


def _readers(nodule: Nodule) -> str:
    return ",".join(str(r.reader + 1) for r in nodule.readings)


if __name__ == "__main__":
    sys.exit(main())
