"""Series on disk for tests of the importers."""

from pathlib import Path

import numpy as np

from consilium.geometry.volume import Grid, Volume
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.dicom_series import SeriesHeader
from consilium.phantoms.dicom import SeriesIdentity, write_series

IDENTITY = SeriesIdentity(label="Test-1")


def noise(grid: Grid, seed: int = 1) -> Volume:
    """A CT of random values on a grid."""
    values = np.random.default_rng(seed).integers(-1024, 3000, grid.shape_zyx, dtype=np.int16)
    return Volume(values, grid)


def write_noise(folder: Path, grid: Grid, leave_out: tuple[int, ...] = ()) -> Volume:
    """Write `noise` as a series."""
    image = noise(grid)
    write_series(folder, image, IDENTITY, leave_out=leave_out)
    return image


def only_series(folder: Path) -> SeriesHeader:
    """The one series of a folder."""
    scan = scan_dicom(sorted(p for p in folder.rglob("*") if p.is_file()))
    if scan.refused:
        raise scan.refused[0]
    (series,) = scan.series
    return series
