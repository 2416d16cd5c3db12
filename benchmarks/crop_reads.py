"""How fast is a 96³ crop read from a training case?

One CT of about 150 × 512 × 512 int16 voxels (LIDC-IDRI-0001 where the real data is at hand, else a noisy
phantom) is kept as the dataset keeps it (``.nii.gz``, read by nibabel), as our cache (blosc2), as an
uncompressed ``.nii`` (nibabel, mapped) and as zarr v3 arrays of the same chunks. The same random crops are
read from each, files in the system's page cache; every crop is compared with the array.

``ours`` and ``peers`` are CPU-seconds per crop; ``ratio`` is nibabel's (``.nii.gz``) divided by ours; there
is no ``limit``. A peer that is not installed is left out and named; see requirements-peers/crop_reads.txt.
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pydicom

from benchmarks.measure import cpu_seconds, report
from consilium.cases.cache import cache_key, cached_array
from consilium.cases.nifti import write_nifti
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array

CROP_EDGE = 96
CASE = "lidc/LIDC-IDRI-0001"
Crop = tuple[slice, slice, slice]
Reader = Callable[[Crop], Array]


def real_ct() -> Array | None:
    """The CT of `CASE` in HU, from the cache that the tests unpack into; None if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consilium-test-data" / CASE
    slices = [pydicom.dcmread(path) for path in cache.rglob("*.dcm")]
    slices = [s for s in slices if s.get("Modality") == "CT"]
    if not slices:
        return None
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    return np.stack([s.pixel_array + int(s.RescaleIntercept) for s in slices]).astype(np.int16)


def phantom(slices: int) -> Array:
    rng = np.random.default_rng(1)
    z, y, x = np.ogrid[:slices, :512, :512]
    body = ((y - 256) / 150) ** 2 + ((x - 256) / 200) ** 2 < 1
    values = np.where(body, 40, -1000) + rng.normal(0, 20, (slices, 512, 512)) + 0 * z
    return values.astype(np.int16)


def stores(array: Array, folder: Path) -> dict[str, tuple[Reader, Path]]:
    """Name -> how a crop is read, and the files it is read from."""
    grid = Grid(array.shape, Affine.from_spacing((2.5, 0.7, 0.7)))
    write_nifti(folder / "image.nii.gz", Volume(array, grid))
    nibabel.save(nibabel.load(folder / "image.nii.gz"), folder / "image.nii")
    key = cache_key("0" * 64)
    cached_array(folder / "cache", key, lambda: array)

    def ours(crop: Crop) -> Array:
        return cached_array(folder / "cache", key, lambda: array)[crop]

    def nifti(name: str) -> Reader:
        def read(crop: Crop) -> Array:
            return np.asarray(nibabel.load(folder / name).dataobj[crop[::-1]]).transpose(2, 1, 0)

        return read

    found: dict[str, tuple[Reader, Path]] = {
        "consilium": (ours, folder / "cache"),
        "nibabel": (nifti("image.nii.gz"), folder / "image.nii.gz"),
        "nibabel-uncompressed": (nifti("image.nii"), folder / "image.nii"),
    }
    try:
        zarr = importlib.import_module("zarr")
    except ImportError:
        print("zarr is not installed: left out")
        return found
    codecs = importlib.import_module("zarr.codecs")
    lz4 = codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")
    for name, options in {"zarr": {}, "zarr-lz4": {"compressors": lz4}}.items():
        path = folder / name
        chunks = (64, 64, 64)
        store = zarr.create_array(str(path), shape=array.shape, chunks=chunks, dtype=array.dtype, **options)
        store[:] = array
        found[name] = (lambda crop, path=path: zarr.open_array(str(path), mode="r")[crop], path)
    return found


def seconds_per_crop(read: Reader, crops: list[Crop], array: Array) -> float:
    read(crops[0])
    before = time.process_time()
    parts = [read(crop) for crop in crops]
    seconds = (time.process_time() - before) / len(crops)
    for part, crop in zip(parts, crops, strict=True):
        assert np.array_equal(part, array[crop])
    return seconds


def size_mib(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a phantom of 100 slices, 4 crops")
    quick = parser.parse_args().quick
    blosc2.set_nthreads(1)
    real = None if quick else real_ct()
    array = phantom(100 if quick else 150) if real is None else real
    rng = np.random.default_rng(2)
    starts = rng.integers(0, np.asarray(array.shape) - CROP_EDGE + 1, (4 if quick else 20, 3))
    crops = [tuple(slice(int(s), int(s) + CROP_EDGE) for s in start) for start in starts]
    print(f"{'phantom' if real is None else CASE}: {array.shape} {array.dtype}, {len(crops)} crops")
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (read, path) in stores(array, Path(folder)).items():
            compressed = name == "nibabel"
            runs = [
                seconds_per_crop(read, crops[: 3 if compressed else len(crops)], array)
                for _ in range(1 if quick else 3)
            ]
            medians[name] = statistics.median(runs)
            spread = f"{min(runs) * 1e3:.2f}–{max(runs) * 1e3:.2f}"
            print(f"{name:22s} {medians[name] * 1e3:9.2f} ms per crop ({spread}), {size_mib(path):6.1f} MiB")
        path = next(Path(folder).rglob("*.b2nd"))
        first = statistics.median(cpu_seconds(lambda: zlib.crc32(path.read_bytes())))
        print(f"checking the cache file, once per process: {first * 1e3:.1f} ms")
    versions = {"blosc2": version("blosc2"), "nibabel": version("nibabel"), "numpy": version("numpy")}
    try:
        versions["zarr"] = version("zarr")
    except PackageNotFoundError:
        print("zarr is not installed: its figures are missing")
    print(f"Python {platform.python_version()}, {versions}", file=sys.stderr)
    ours = medians.pop("consilium")
    question = "How many CPU-seconds does reading a 96³ crop of a CT take?"
    report(question, "CPU-s per crop", ours, medians, limit=None, ratio=medians["nibabel"] / ours)


if __name__ == "__main__":
    main()
