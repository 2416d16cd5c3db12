"""How fast are HD95, mean surface distance and surface Dice of one pair of masks?

The pairs are phantoms on a 150 x 512 x 512 grid of 3 x 0.98 x 0.98 mm: a tumour (60 mm) and a lung
(360 x 255 x 157 mm), each with a shifted, roughened prediction. Every program computes the same three figures
from the two boolean masks; ours computes Dice, volumes and added path length besides.

``ours`` and ``peers`` are CPU-seconds for the lung (``--quick``: the tumour); ``ratio`` is the peer
surface-distance divided by ours, ``limit`` is 2. The program fails if any of surface-distance's figures
differs from ours by more than 1e-6. A peer that is not installed is left out and named; see
requirements-peers/metrics.txt.
"""

import argparse
import importlib
import platform
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from scipy import ndimage

from benchmarks.measure import cpu_seconds, extra_peak_mib, median, report
from consilium.metrics.comparison import compare_masks
from consilium.types import Mask, Shape, Triple

SPACING = (3.0, 0.98, 0.98)
SHAPE = (150, 512, 512)
TOLERANCE_MM = 2.0
Figures = tuple[float, float, float]
"""HD95 in mm, mean surface distance in mm (NaN where the peer defines another mean), surface Dice."""


def ellipsoid(centre: Triple, radii: Triple, roughness: Mask | None = None) -> Mask:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True))
    return np.asarray(distance <= (1.0 if roughness is None else 1 + roughness))


def pair(centre: Triple, radii: Triple, shift: Shape, rng: np.random.Generator) -> tuple[Mask, Mask]:
    coarse = rng.standard_normal((15, 52, 52))
    zoom = [n / m for n, m in zip(SHAPE, coarse.shape, strict=True)]
    roughness = 0.15 * ndimage.zoom(coarse, zoom, order=1)
    moved = (centre[0] + shift[0], centre[1] + shift[1], centre[2] + shift[2])
    return ellipsoid(centre, radii), ellipsoid(moved, radii, roughness)


def ours(reference: Mask, prediction: Mask) -> Figures:
    figures = compare_masks(reference, prediction, SPACING, tolerance_mm=TOLERANCE_MM)
    means = (figures.reference_to_prediction_mm, figures.prediction_to_reference_mm)
    return figures.hd95_mm, float(np.mean(means)), figures.surface_dice


def google(reference: Mask, prediction: Mask) -> Figures:
    peer = importlib.import_module("surface_distance")
    distances = peer.compute_surface_distances(reference, prediction, SPACING)
    means = peer.compute_average_surface_distance(distances)
    surface_dice = peer.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
    return peer.compute_robust_hausdorff(distances, 95), float(np.mean(means)), surface_dice


def monai(reference: Mask, prediction: Mask) -> Figures:
    torch = importlib.import_module("torch")
    peer = importlib.import_module("monai.metrics")
    y_pred, y = (torch.from_numpy(m[None, None]) for m in (prediction, reference))
    hd95 = peer.compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=SPACING)
    mean = peer.compute_average_surface_distance(
        y_pred, y, include_background=True, symmetric=True, spacing=SPACING
    )
    surface_dice = peer.compute_surface_dice(
        y_pred,
        y,
        [TOLERANCE_MM],
        include_background=True,
        spacing=SPACING,
        use_subvoxels=True,
    )
    return float(hd95), float(mean), float(surface_dice)


PEERS: dict[str, tuple[str, Callable[[Mask, Mask], Figures]]] = {
    "surface-distance": ("surface_distance", google),
    "monai": ("monai", monai),
}


def present() -> dict[str, Callable[[Mask, Mask], Figures]]:
    found = {}
    for name, (module, work) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{name} is not installed: left out (requirements-peers/metrics.txt)")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the tumour only, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    repeats = 1 if arguments.quick else arguments.repeats
    rng = np.random.default_rng(20261123)
    pairs = {"tumour": pair((70, 250, 250), (10, 30, 30), (1, 2, -3), rng)}
    if not arguments.quick:
        pairs["lung"] = pair((70, 250, 180), (60, 130, 80), (1, 2, 3), rng)
    print(versions())
    peers = present()
    figure, others, agreed = float("nan"), dict[str, float](), True
    for name, (reference, prediction) in pairs.items():
        print(f"{name}: {int(reference.sum())} and {int(prediction.sum())} voxels")
        seconds: dict[str, list[float]] = {}
        results: dict[str, Figures] = {}
        for program, work in {"consilium": ours, **peers}.items():
            results[program] = work(reference, prediction)
            seconds[program] = cpu_seconds(partial(work, reference, prediction), repeats)
            peak = extra_peak_mib(partial(work, reference, prediction))
            hd95, mean, surface_dice = results[program]
            print(
                f"  {program:17s} {median(seconds[program]):7.3f} CPU-s"
                f" ({min(seconds[program]):.3f}-{max(seconds[program]):.3f}), +{peak:.0f} MiB,"
                f" HD95 {hd95:.6f} mm, mean {mean:.6f} mm, surface Dice {surface_dice:.6f}"
            )
        if "surface-distance" in results:
            difference = np.abs(np.subtract(results["consilium"], results["surface-distance"])).max()
            agreed &= bool(difference <= 1e-6)
            print(f"  largest difference from surface-distance: {difference:.1e}")
        figure = median(seconds.pop("consilium"))
        others = {program: median(values) for program, values in seconds.items()}
    ratio = others["surface-distance"] / figure if "surface-distance" in others else None
    report(
        "CPU time of HD95, mean surface distance and surface Dice of one pair of masks",
        "CPU-s",
        figure,
        others,
        limit=2.0,
        ratio=ratio,
    )
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
