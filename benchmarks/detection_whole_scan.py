"""How long does finding and contouring take on a 512 x 512 x 300 CT at its own resolution, in one pass?

``ours`` is the wall time of the detection in s; ``limit`` is 30 s; ``ratio`` is ours / limit. Also printed:
peak memory (bar: 6 GB) and the whole cascade with 30 candidates (bar: 60 s). The weights are untrained, which
does not change the work; the score map is replaced by 30 peaks so that there is something to contour.

    python -m benchmarks.detection_whole_scan [--quick] [--repeats 3]
"""

import argparse
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import process_peak_mib, report
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.inference.candidates import DetectorDescription, find_candidates
from consilium.inference.cascade import Cascade, contour_instances
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.model import build_model
from consilium.inference.preprocess import Preprocessing
from consilium.networks.build import build_network, set_output_prior
from consilium.networks.detector import Detector, DetectorConfig, with_bf16
from consilium.phantoms.chest import NODULE
from consilium.training.candidate_patches import PatchConfig
from consilium.training.detection import LUNG_WINDOW

SPACING = (1.0, 0.7, 0.7)
CANDIDATES = 30
LIMIT_S = 30.0


class Peaks(Detector):
    """The detector with its score map replaced by equally spaced peaks, after all the work was done."""

    def forward(self, image: Tensor) -> Tensor:
        maps = super().forward(image)
        flat = torch.full((maps[0, 0].numel(),), -20.0)
        flat[torch.linspace(0.2 * len(flat), 0.8 * len(flat), CANDIDATES).long()] = 5.0
        maps[0, 0] = flat.view(maps.shape[2:]).to(maps.device)
        maps[:, 1:4] = 0.0
        maps[:, 4] = 2.3
        return maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller scan, once")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shape = (75, 256, 256) if arguments.quick else (300, 512, 512)
    repeats = 1 if arguments.quick else arguments.repeats
    rng = np.random.default_rng(0)
    slab = rng.normal(-600, 300, (1, *shape[1:])).astype(np.int16)
    volume = Volume(np.repeat(slab, shape[0], axis=0), Grid(shape, Affine.from_spacing(SPACING)))
    preprocessing = Preprocessing(spacing_zyx_mm=SPACING, windows=LUNG_WINDOW)
    config = DetectorConfig()
    description = DetectorDescription(structure=NODULE, preprocessing=preprocessing, network=config)
    detector = Peaks(with_bf16(config, has_fast_bf16(choose_device()))).eval()
    before = process_peak_mib()
    detection, processor = [], []
    for _ in range(repeats):
        started, used = time.monotonic(), time.process_time()
        found = find_candidates(detector, description, volume)
        detection.append(time.monotonic() - started)
        processor.append(time.process_time() - used)
    peak = process_peak_mib()
    patches = PatchConfig(structure=NODULE, preprocessing=preprocessing, patch_zyx=(48, 64, 64))
    network = build_network(patches.network, seed=0)
    set_output_prior(network, [0.6])
    segmenter = build_model(patches.describe(), network.state_dict())
    cascade = Cascade(detector=detector, description=description, segmenter=segmenter)
    whole, used_whole = [], []
    for _ in range(repeats):
        started, used = time.monotonic(), time.process_time()
        contour_instances(cascade, volume, least_confidence=0.0)
        whole.append(time.monotonic() - started)
        used_whole.append(time.process_time() - used)
    bf16 = detector.config.trunk.bf16
    print(f"{shape} voxels, {len(found)} candidates, {torch.get_num_threads()} threads, bf16 {bf16}")
    print(f"detection: {spread(detection)} s, {spread(processor)} CPU-s")
    print(f"peak of the process: {peak:.0f} MiB, {before:.0f} before")
    peak = process_peak_mib()
    print(f"cascade: {spread(whole)} s, {spread(used_whole)} CPU-s; peak {peak:.0f} MiB")
    middle = float(np.median(detection))
    report("detection in a whole scan in one pass", "s", middle, {}, limit=LIMIT_S, ratio=middle / LIMIT_S)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
