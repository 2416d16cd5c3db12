"""How fast do masks become an RTSTRUCT, and does an independent reader get them back?

The twelve masks of the phantom of ``rtstruct_to_mask.py`` and a line of single voxels, written for its series
of 150 slices of 512 x 512 (``--quick``: 30 of 128 x 128). Timed is the way from the boolean masks to the file
on disk; rt-utils has opened the series before. Every file is read back by pydicom and matplotlib (point in
polygon at voxel centres): Dice and volume change per structure, contours under 3 points, decimal strings over
16 bytes.

``ours`` and ``peers`` are CPU-seconds; ``ratio`` is rt-utils divided by ours, ``limit`` is 1 (no slower). The
program fails if a mask of ours does not come back exactly. Peers: requirements-peers/contours.txt; one that
is not installed is left out and named. platipy 0.4.1 cannot be measured: its writer does not load beside a
current matplotlib.
"""

import argparse
import importlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from benchmarks.measure import median, report
from benchmarks.rtstruct_phantom import IDENTITY, dice, independent_masks, timed, versions, write_phantom
from consilium.exporters.dicom_reference import SeriesReference
from consilium.exporters.rtstruct import Algorithm, export_rtstruct, rois_from_masks
from consilium.geometry.volume import Grid
from consilium.types import Mask

Masks = dict[str, Mask]


def ours(folder: Path, grid: Grid, masks: Masks) -> tuple[Path, Callable[[], Any], Callable[[Any], Any]]:
    positions = grid.affine.to_points([(z, 0, 0) for z in range(grid.shape_zyx[0])])
    reference = SeriesReference(
        patient={"PatientName": "Phantom^benchmark", "PatientID": "PHANTOM-benchmark"},
        study={"StudyInstanceUID": IDENTITY.uid("study")},
        series_instance_uid=IDENTITY.uid("series", "CT"),
        frame_of_reference_uid=IDENTITY.uid("frame of reference"),
        slices=tuple(
            (IDENTITY.uid("instance", z), (float(x), float(y), float(s)))
            for z, (x, y, s) in enumerate(positions)
        ),
    )
    path = folder / "ours.dcm"
    algorithm = Algorithm(name="benchmark", model_sha256="0" * 64)

    def work(_: None) -> None:
        export_rtstruct(path, rois_from_masks(masks.items(), grid), grid, reference, algorithm=algorithm)

    return path, lambda: None, work


def rt_utils(folder: Path, masks: Masks) -> tuple[Path, Callable[[], Any], Callable[[Any], Any]]:
    builder = importlib.import_module("rt_utils").RTStructBuilder
    path = folder / "rt-utils.dcm"
    turned = {name: np.ascontiguousarray(np.moveaxis(mask, 0, 2)) for name, mask in masks.items()}

    def work(opened: Any) -> None:
        for name, mask in turned.items():
            opened.add_roi(mask=mask, name=name)
        opened.save(str(path))

    return path, lambda: builder.create_new(str(folder / "ct")), work


def judge(path: Path, masks: Masks, grid: Grid) -> bool:
    """Print what came back; whether everything did."""
    back = independent_masks(path, grid)
    exact = True
    for name, mask in masks.items():
        again = back.get(name, np.zeros_like(mask))
        change = np.count_nonzero(again) / np.count_nonzero(mask) - 1
        exact &= bool(np.array_equal(again, mask))
        print(f"    {name}: Dice {dice(mask, again):.4f}, volume {100 * change:+.2f} %")
    few = long = contours = 0
    for item in pydicom.dcmread(path).ROIContourSequence:
        for contour in item.get("ContourSequence", []):
            raw = bytes(contour.get_item("ContourData").value).rstrip(b" ").split(b"\\")
            contours += 1
            few += len(raw) < 9
            long += sum(len(text) > 16 for text in raw)
    size = path.stat().st_size / 1e6
    print(f"    {contours} contours, {few} under 3 points, {long} strings over 16 bytes, {size:.2f} MB")
    return exact and not few and not long


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="30 slices of 128 x 128, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    repeats = 1 if arguments.quick else arguments.repeats
    print(versions("numpy", "numba", "pydicom", "rt-utils", "opencv-python"))
    others: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        grid = write_phantom(folder, quick=arguments.quick)
        masks = independent_masks(folder / "rtstruct.dcm", grid)
        line = np.zeros(grid.shape_zyx, dtype=bool)
        line[:, grid.shape_zyx[1] // 3, grid.shape_zyx[2] // 3] = True
        masks["OneVoxelLine"] = line
        path, prepare, work = ours(folder, grid, masks)
        seconds = timed(prepare, work, repeats)
        print(f"  consilium: {seconds}")
        good = judge(path, masks, grid)
        figure = median(seconds)
        try:
            path, prepare, work = rt_utils(folder, masks)
        except ImportError:
            print("rt-utils is not installed: left out (requirements-peers/contours.txt)")
        else:
            seconds = timed(prepare, work, repeats)
            others["rt-utils"] = median(seconds)
            print(f"  rt-utils: {seconds}")
            judge(path, masks, grid)
    report(
        "CPU time from thirteen masks to an RTSTRUCT on disk",
        "CPU-s",
        figure,
        others,
        limit=1.0,
        ratio=others["rt-utils"] / figure if others else None,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
