"""How fast, and how right, do the contours of an RTSTRUCT become masks?

A phantom series (150 x 512 x 512 voxels of 2.5 x 0.75 x 0.75 mm; ``--quick``: 30 x 128 x 128) with twelve
structures whose cross-sections have closed-form areas. Timed is the way from the RTSTRUCT file (ours,
platipy) or from the RTSTRUCT that the peer has already opened (rt-utils, DicomRTTool: in their favour) to the
masks of all structures, one after the other; plastimatch is a program of its own and also reads the CT and
writes files. Beside the time stand, per program, the Dice to an independent reader (pydicom and matplotlib,
point in polygon at voxel centres) and the volume against closed-form area times slice distance.

``ours`` and ``peers`` are CPU-seconds; ``ratio`` is rt-utils divided by ours, ``limit`` is 10. The program
fails if one of our masks has a Dice below 0.999 or, except in a quick run with its coarse pixels, a volume
off by more than 1 % where it is over 2 cm³. Peers: requirements-peers/contours.txt; one that is not installed
is left out and named.
"""

import argparse
import importlib
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from benchmarks.measure import median, report
from benchmarks.rtstruct_phantom import (
    IDENTITY,
    ORGANS,
    contoured_cm3,
    dice,
    independent_masks,
    timed,
    versions,
    write_phantom,
)
from consilium.geometry.volume import Grid
from consilium.importers.rtstruct import annotations_from_rtstruct, read_rtstruct
from consilium.types import Mask

SLOW_CPU_S = 20.0
"""A peer that takes longer is measured once."""
NAMES = tuple(organ.structure for organ in ORGANS)
Masks = dict[str, Mask]
Work = tuple[Callable[[], Any], Callable[[Any], Masks]]


def ours(folder: Path, grid: Grid) -> Work:
    def work(_: None) -> Masks:
        placed = annotations_from_rtstruct(
            read_rtstruct(folder / "rtstruct.dcm"),
            grid,
            sop_uids=(),
            frame_of_reference_uid=IDENTITY.uid("frame of reference"),
        )
        return {a.structure: np.asarray(a.mask()) for a in placed.annotations if a.mask is not None}

    return lambda: None, work


def rt_utils(folder: Path, _grid: Grid) -> Work:
    builder = importlib.import_module("rt_utils").RTStructBuilder

    def prepare() -> Any:
        return builder.create_from(str(folder / "ct"), str(folder / "rtstruct.dcm"))

    def work(opened: Any) -> Masks:
        return {name: np.moveaxis(opened.get_roi_mask_by_name(name), 2, 0) for name in NAMES}

    return prepare, work


def platipy(folder: Path, _grid: Grid) -> Work:
    convert = importlib.import_module("platipy.dicom.io.rtstruct_to_nifti")
    importlib.import_module("loguru").logger.remove()
    sitk = importlib.import_module("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "ct")))
    image = reader.Execute()

    def work(_: None) -> Masks:
        structures = pydicom.dcmread(folder / "rtstruct.dcm")
        masks, names = convert.transform_point_set_from_dicom_struct(image, structures)
        return {name: sitk.GetArrayFromImage(m) > 0 for m, name in zip(masks, names, strict=True)}

    return lambda: None, work


def dicom_rt_tool(folder: Path, _grid: Grid) -> Work:
    tool = importlib.import_module("DicomRTTool.ReaderWriter")

    def prepare() -> Any:
        reader = tool.DicomReaderWriter(
            description="", Contour_Names=[n.lower() for n in NAMES], arg_max=False, verbose=False
        )
        reader.walk_through_folders(str(folder))
        reader.set_index(next(iter(reader.indexes_with_contours), 0))
        reader.get_images()
        return reader

    def work(reader: Any) -> Masks:
        reader.get_mask()
        return {name: reader.mask[..., k + 1] > 0 for k, name in enumerate(NAMES)}

    return prepare, work


def plastimatch(folder: Path, grid: Grid, repeats: int) -> tuple[list[float], Masks]:
    sitk = importlib.import_module("SimpleITK")
    seconds = []
    out = folder / "plastimatch"
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            ["plastimatch", "convert", "--input", str(folder / "rtstruct.dcm"), "--referenced-ct",
             str(folder / "ct"), "--output-prefix", str(out), "--prefix-format", "nrrd", "--xor-contours"],
            check=True, capture_output=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    masks = {n: sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{n}.nrrd"))) > 0 for n in NAMES}
    return seconds, masks


PEERS: dict[str, tuple[str, Callable[[Path, Grid], Work]]] = {
    "rt-utils": ("rt_utils", rt_utils),
    "platipy": ("platipy", platipy),
    "DicomRTTool": ("DicomRTTool", dicom_rt_tool),
}


def judge(masks: Masks, truth: Masks, grid: Grid, *, quick: bool) -> bool:
    """Print Dice and volume error of each structure; whether all keep our limits."""
    good, cells = True, []
    for organ in ORGANS:
        mask = masks.get(organ.structure)
        if mask is None or mask.shape != grid.shape_zyx:
            cells.append(f"{organ.structure}: no mask of the image's shape")
            good = False
            continue
        paper = contoured_cm3(organ, grid)
        error = np.count_nonzero(mask) * grid.voxel_volume_cm3 / paper - 1
        overlap = dice(mask, truth[organ.structure])
        good &= overlap >= 0.999 and (quick or paper <= 2.0 or abs(error) <= 0.01)
        cells.append(f"{organ.structure} ({paper:.2f} cm3): Dice {overlap:.4f}, volume {100 * error:+.2f} %")
    for cell in cells:
        print(f"    {cell}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="30 slices of 128 x 128, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    repeats = 1 if arguments.quick else arguments.repeats
    print(versions("numpy", "numba", "pydicom", *PEERS, "SimpleITK"))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        grid = write_phantom(folder, quick=arguments.quick)
        truth = independent_masks(folder / "rtstruct.dcm", grid)
        before = time.process_time()
        data = [
            np.array(c.ContourData, float)
            for item in pydicom.dcmread(folder / "rtstruct.dcm").ROIContourSequence
            for c in item.ContourSequence
        ]
        parse = time.process_time() - before
        print(
            f"{len(data)} contours, {sum(map(len, data)) // 3} points; pydicom alone parses {parse:.2f} CPU-s"
        )
        prepare, work = ours(folder, grid)
        seconds["consilium"] = timed(prepare, work, repeats)
        print(f"  consilium: {seconds['consilium']}")
        good = judge(work(prepare()), truth, grid, quick=arguments.quick)
        for name, (module, make) in PEERS.items():
            try:
                importlib.import_module(module)
            except ImportError:
                print(f"{name} is not installed: left out (requirements-peers/contours.txt)")
                continue
            prepare, work = make(folder, grid)
            ready = prepare()
            before = time.process_time()
            masks = work(ready)
            seconds[name] = [time.process_time() - before]
            if seconds[name][0] < SLOW_CPU_S:
                seconds[name] = timed(prepare, work, repeats)
            print(f"  {name}: {seconds[name]}")
            judge(masks, truth, grid, quick=arguments.quick)
        if shutil.which("plastimatch") and "platipy" in seconds:
            seconds["plastimatch"], masks = plastimatch(folder, grid, repeats)
            print(
                f"  plastimatch --xor-contours (reads the CT and writes files too): {seconds['plastimatch']}"
            )
            judge(masks, truth, grid, quick=arguments.quick)
        else:
            print("plastimatch is not installed: left out")
    figure = median(seconds.pop("consilium"))
    others = {name: median(values) for name, values in seconds.items()}
    report(
        "CPU time from an RTSTRUCT to the masks of twelve structures",
        "CPU-s",
        figure,
        others,
        limit=10.0,
        ratio=others["rt-utils"] / figure if "rt-utils" in others else None,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
