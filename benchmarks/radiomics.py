"""How long do all IBSI-1 features of one region take?

The region is a ball of about 57 000 voxels with smoothed noise in a 64 x 64 x 64 image of 1 mm voxels; bins
are 25 HU wide. ``ours`` is CPU-seconds for every family in the ways "3D averaged" and "3D merged"; all six
ways are printed beside it. Peers compute what they have: mirp all families in one way (3D merged),
pyradiomics its seven classes. ``limit`` is 0.7 s, ``ratio`` is ours / limit. Where mirp is present, its
values are compared with ours. A peer that is not installed is left out and named; see
requirements-peers/radiomics.txt.
"""

import argparse
import importlib
import logging
import numbers
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.measure import cpu_seconds, extra_peak_mib, median, report
from consilium.radiomics.features import compute_features
from consilium.radiomics.settings import AGGREGATION_CODES, FixedBinWidth, RadiomicsSettings
from consilium.types import Array, Mask

LIMIT_S = 0.7
RANGE_HU = (-1000.0, 400.0)
SPACING = (1.0, 1.0, 1.0)
BASIC = RadiomicsSettings(intensity_range=RANGE_HU, discretisation=FixedBinWidth(25.0))
EVERY_WAY = RadiomicsSettings(
    intensity_range=RANGE_HU,
    discretisation=FixedBinWidth(25.0),
    aggregations=tuple(AGGREGATION_CODES),
)


def region(seed: int = 20261123) -> tuple[Array, Mask]:
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.standard_normal((64, 64, 64)), 1.0)
    image = np.clip(np.rint(image / image.std() * 150 - 100), *RANGE_HU)
    z, y, x = np.ogrid[:64, :64, :64]
    return image, np.asarray((z - 31.5) ** 2 + (y - 31.5) ** 2 + (x - 31.5) ** 2 <= 23.88**2)


def ours(image: Array, mask: Mask, settings: RadiomicsSettings) -> dict[str, float]:
    return {f.tag: f.value for f in compute_features(image, mask, SPACING, settings)}


def mirp(folder: Path) -> dict[str, float]:
    peer = importlib.import_module("mirp")
    tables = peer.extract_features(
        image=str(folder / "image.nii.gz"),
        mask=str(folder / "mask.nii.gz"),
        image_modality="ct",
        resegmentation_intensity_range=list(RANGE_HU),
        base_feature_families="all",
        base_discretisation_method="fixed_bin_size",
        base_discretisation_bin_width=25.0,
    )
    row = tables[0].iloc[0]
    return {str(name): float(row[name]) for name in tables[0].columns if isinstance(row[name], numbers.Real)}


def pyradiomics(folder: Path) -> dict[str, float]:
    peer = importlib.import_module("radiomics.featureextractor")
    extractor = peer.RadiomicsFeatureExtractor(binWidth=25)
    found = extractor.execute(str(folder / "image.nii.gz"), str(folder / "mask.nii.gz"))
    return {name: float(value) for name, value in found.items() if name.startswith("original_")}


PEERS: dict[str, tuple[str, Callable[[Path], dict[str, float]]]] = {
    "mirp": ("mirp", mirp),
    "pyradiomics": ("radiomics", pyradiomics),
}


def write_region(folder: Path, image: Array, mask: Mask) -> None:
    for name, array in (("image", image.astype(np.int16)), ("mask", mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array.T, np.diag([1.0, 1.0, 1.0, 1.0])), folder / f"{name}.nii.gz")


def present() -> dict[str, Callable[[Path], dict[str, float]]]:
    found = {}
    # pyradiomics is imported as "radiomics", which this file's own folder would answer to.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
    for name, (module, work) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{name} is not installed: left out (requirements-peers/radiomics.txt)")
        else:
            found[name] = work
    return found


def versions() -> str:
    lines = [f"Python {platform.python_version()}"]
    for package in ("numpy", "scipy", "numba", *PEERS):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(lines)


def mirp_name(tag: str) -> str:
    """How mirp's table calls a feature, without the discretisation at the end."""
    for ours, theirs in (("cm_", "_d1"), ("ngl_", "_d1_a0.0")):
        if tag.startswith(ours):
            tag = tag.replace("_3D", f"{theirs}_3D")
    return tag.replace("_3D_comb", "_3d_v_mrg").replace("_3D", "_3d")


def compare(values: dict[str, float], theirs: dict[str, float]) -> None:
    """Print how many of mirp's features equal ours, and each that does not."""
    same, other = 0, []
    for tag, value in values.items():
        name = mirp_name(tag)
        found = [v for key, v in theirs.items() if key == name or key.startswith(f"{name}_fbs")]
        if found and np.isclose(found[0], value, rtol=1e-3, atol=1e-6):
            same += 1
        elif found:
            other.append(f"{tag} {value:.6g} (mirp {found[0]:.6g})")
    print(f"  of the features that both have, {same} are equal within 0.1 %, {len(other)} are not")
    for words in other:
        print(f"    {words}")


def line(name: str, seconds: list[float], work: Callable[[], Any], count: int) -> None:
    print(
        f"  {name:26s} {median(seconds):7.3f} CPU-s ({min(seconds):.3f}-{max(seconds):.3f}),"
        f" +{extra_peak_mib(work):.0f} MiB, {count} values"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    image, mask = region()
    print(versions())
    print(f"{int(mask.sum())} voxels, {image[mask].min():g} to {image[mask].max():g} HU")
    work = partial(ours, image, mask, BASIC)
    seconds = cpu_seconds(work, repeats)
    line("consilium, 3D", seconds, work, len(work()))
    every = partial(ours, image, mask, EVERY_WAY)
    line("consilium, all six ways", cpu_seconds(every, repeats), every, len(every()))
    peers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_region(folder, image, mask)
        for program, function in present().items():
            peer = partial(function, folder)
            found = peer()
            taken = cpu_seconds(peer, min(repeats, 3))
            line(program, taken, peer, len(found))
            peers[program] = median(taken)
            if program == "mirp":
                compare(work(), found)
    report(
        "CPU time of all IBSI-1 features of a region of 57 000 voxels",
        "CPU-s",
        median(seconds),
        peers,
        limit=LIMIT_S,
        ratio=median(seconds) / LIMIT_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
