"""What the two RTSTRUCT benchmarks share: twelve structures in a CT series on disk, and the truth."""

import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from matplotlib.path import Path as PolygonPath

from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.phantoms.dicom import SeriesIdentity, write_patient
from consilium.phantoms.organs import Organ
from consilium.types import Mask

IDENTITY = SeriesIdentity(label="benchmark")
ORGANS = tuple(
    Organ(structure=name, centre_lps_mm=centre, radii_lps_mm=radii, hu=0, waves=waves, is_tube=tube)
    for name, centre, radii, waves, tube in (
        ("Body", (0, 0, 0), (170, 110, 185), ((2, 0.05, 0.4),), True),
        ("Lung_L", (85, 5, 20), (60, 75, 140), ((2, 0.06, 1.0), (3, 0.04, 0.2)), False),
        ("Lung_R", (-85, 5, 20), (62, 78, 145), ((2, 0.06, 2.0), (3, 0.04, 0.7)), False),
        ("Heart", (25, -30, -20), (50, 45, 55), ((3, 0.05, 0.3),), False),
        ("Liver", (-60, -10, -110), (80, 60, 60), ((2, 0.1, 0.9),), False),
        ("SpinalCord", (0, 75, 0), (7, 6, 180), (), True),
        ("Esophagus", (5, 45, 20), (9, 7, 130), ((2, 0.1, 0.0),), True),
        ("Trachea", (0, 20, 110), (10, 9, 60), (), True),
        ("GTV", (-70, 20, 30), (14, 12, 13), ((3, 0.1, 0.0),), False),
        ("Kidney_L", (60, 55, -130), (28, 24, 45), (), False),
        ("Lens_L", (33, -80, 160), (4, 4, 5), (), False),
        ("Lens_R", (-33, -80, 160), (4, 4, 5), (), False),
    )
)


def write_phantom(folder: Path, *, quick: bool) -> Grid:
    """Write ``ct/`` and ``rtstruct.dcm``: 150 slices of 512 x 512 pixels, or 30 of 128 x 128."""
    shape = (30, 128, 128) if quick else (150, 512, 512)
    spacing = (12.5, 3.0, 3.0) if quick else (2.5, 0.75, 0.75)
    nz, ny, nx = shape
    sz, sy, sx = spacing
    origin = (-(nx - 1) / 2 * sx + 0.11, -(ny - 1) / 2 * sy - 0.07, -(nz - 1) / 2 * sz)
    grid = Grid((nz, ny, nx), Affine.from_spacing((sz, sy, sx), origin_lps_mm=origin))
    rng = np.random.default_rng(20261123)
    image = Volume(rng.integers(-1000, 1000, grid.shape_zyx, dtype=np.int16), grid)
    levels = origin[2] + sz * np.arange(nz)
    contours = {
        organ.structure: [p for z in levels if len(p := organ.polygon(float(z), points=_points(organ)))]
        for organ in ORGANS
    }
    write_patient(folder, image, contours, IDENTITY)
    return grid


def _points(organ: Organ) -> int:
    """About one point a millimetre, as planning systems write."""
    x, y, _ = organ.radii_lps_mm
    return max(40, round(np.pi * (x + y)))


def contoured_cm3(organ: Organ, grid: Grid) -> float:
    """Closed-form areas times slice distance."""
    sz = grid.spacing_zyx_mm[0]
    levels = grid.affine.origin_lps_mm[2] + sz * np.arange(grid.shape_zyx[0])
    return sum(organ.area_mm2(float(z)) for z in levels) * sz / 1000


def independent_masks(path: Path, grid: Grid) -> dict[str, Mask]:
    """Point in polygon at voxel centres, by plain pydicom and matplotlib; exclusive or within a slice."""
    dataset = pydicom.dcmread(path)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    _, ny, nx = grid.shape_zyx
    masks = {}
    for item in dataset.ROIContourSequence:
        mask = np.zeros(grid.shape_zyx, dtype=bool)
        for contour in item.get("ContourSequence", []):
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            index = grid.affine.to_indices(points)
            z = int(np.rint(index[0, 0]))
            low = np.clip(np.floor(index[:, 1:].min(axis=0)), 0, (ny, nx)).astype(int)
            high = np.clip(np.ceil(index[:, 1:].max(axis=0)) + 1, 0, (ny, nx)).astype(int)
            y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
            inside = PolygonPath(index[:, 1:]).contains_points(np.stack([y.ravel(), x.ravel()], axis=1))
            mask[z, low[0] : high[0], low[1] : high[1]] ^= inside.reshape(y.shape)
        masks[names[item.ReferencedROINumber]] = mask
    return masks


def dice(a: Mask, b: Mask) -> float:
    """Dice of two masks; NaN if both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else float("nan")


def timed(prepare: Callable[[], Any], work: Callable[[Any], Any], repeats: int) -> list[float]:
    """CPU-seconds of ``work(prepare())`` without ``prepare``, after one warm-up."""
    work(prepare())
    seconds = []
    for _ in range(repeats):
        ready = prepare()
        before = time.process_time()
        work(ready)
        seconds.append(time.process_time() - before)
    return seconds


def versions(*packages: str) -> str:
    """Versions of Python and of those packages that are installed."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
