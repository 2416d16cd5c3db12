"""How much CPU time and memory does loading a CT series take, beside reading its raw bytes and the peers?

``ratio`` is ours / raw bytes (limit 3). Ours reads headers and pixels from nothing but the folder. Peers that
are not installed (``requirements-peers/dicom.txt``) are left out.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import cpu_seconds, extra_peak_mib, median, report
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.importers.dicom_scan import scan_dicom
from consilium.importers.dicom_series import read_series
from consilium.phantoms.dicom import SeriesIdentity, write_series

LIMIT = 3.0


def write(folder: Path, shape: tuple[int, int, int]) -> None:
    """A series of noise, uncompressed."""
    rng = np.random.default_rng(0)
    grid = Grid(shape, Affine.from_spacing((2.0, 0.9, 0.9), origin_lps_mm=(-230.4, -230.4, -100.0)))
    image = Volume(rng.integers(-1024, 3000, shape, dtype=np.int16), grid)
    write_series(folder, image, SeriesIdentity(label="Benchmark-1"))


def ways(folder: Path, shape: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """Every way to load the folder, by package."""
    paths = sorted(folder.glob("*.dcm"))
    size = shape[1] * shape[2] * 2

    def raw() -> Any:
        array = np.empty(shape, np.int16)
        for k, path in enumerate(paths):
            content = path.read_bytes()
            array[k] = np.frombuffer(content, np.int16, offset=len(content) - size).reshape(shape[1:])
        return array

    def ours() -> Any:
        return read_series(scan_dicom(paths).series[0])[0].array

    def pydicom_way() -> Any:
        import pydicom

        datasets = sorted((pydicom.dcmread(p) for p in paths), key=lambda d: d.ImagePositionPatient[2])
        return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in datasets])

    def simpleitk_way() -> Any:
        import SimpleITK as sitk

        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        return sitk.GetArrayViewFromImage(sitk.ReadImage(names))

    def highdicom_way() -> Any:
        import highdicom
        import pydicom

        return highdicom.get_volume_from_series([pydicom.dcmread(p) for p in paths]).array

    def torchio_way() -> Any:
        import torchio

        return torchio.ScalarImage(folder).data

    peers = {
        "pydicom": pydicom_way,
        "SimpleITK": simpleitk_way,
        "highdicom": highdicom_way,
        "torchio": torchio_way,
    }
    installed = {name: way for name, way in peers.items() if importlib.util.find_spec(name)}
    for name in sorted(set(peers) - set(installed)):
        print(f"{name} is not installed: left out")
    return {"raw bytes": raw, "consilium": ours, **installed}


def main() -> None:
    """Write the series, load it in every way, print one line each and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30 slices instead of 150")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    shape = (30 if arguments.quick else 150, 512, 512)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, shape)
        for way, load in ways(folder, shape).items():
            times = cpu_seconds(load, arguments.repeats)
            extra = extra_peak_mib(load) / (np.prod(shape) * 2 / 2**20)
            seconds[way] = median(times)
            print(f"{way}: {median(times):.3f} s ({min(times):.3f} to {max(times):.3f}), "
                  f"memory {extra:.2f} × the volume")  # fmt: skip
    ours, raw = seconds.pop("consilium"), seconds.pop("raw bytes")
    report(
        "How much CPU time does loading a CT series take, in multiples of reading its raw bytes?",
        "CPU-seconds",
        ours,
        {"raw bytes": raw, **seconds},
        limit=LIMIT,
        ratio=ours / raw,
    )


if __name__ == "__main__":
    sys.exit(main())
