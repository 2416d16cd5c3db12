"""Does a training step, and a pass, on a whole 512 × 512 × 256 CT fit in the memory of a workstation?

Each in its own process, squeeze stem, bfloat16, two structures; resident memory is the process's highest.
``ours`` is the training step's peak in GiB, ``limit`` 6, ``ratio`` ours / limit; inference must stay under 4.
No peer is run: on paper they need 38 GiB and more.
Run it as ``python -m benchmarks.whole_ct_step [--quick]``.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace

import torch

from benchmarks.measure import process_peak_mib, report
from benchmarks.training_step import SQUEEZE, make_step
from consilium.networks.build import build_network
from consilium.networks.memory import predict_peak_bytes

LIMIT_GIB = 6.0
CONFIG = replace(SQUEEZE, bf16=True)


def run_one(kind: str, shape: tuple[int, int, int]) -> None:
    """One step in this process; prints GiB and CPU-seconds."""
    network = build_network(CONFIG, seed=0)
    before, started = process_peak_mib(), time.process_time()
    if kind == "training":
        make_step(network, shape)()
    else:
        with torch.inference_mode():
            network.eval()(torch.empty(1, 1, *shape).normal_())
    print(process_peak_mib() / 1024, before / 1024, time.process_time() - started)


def measure(kind: str, size: str) -> tuple[float, float, float]:
    """Peak GiB, GiB before the step, CPU-seconds, of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.whole_ct_step", "--one", kind, "--size", size]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(out[-3]), float(out[-2]), float(out[-1])


def main() -> None:
    """Measure both in processes of their own, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 × 128 × 128")
    parser.add_argument("--size", default="256x512x512")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", choices=["training", "inference"])
    arguments = parser.parse_args()
    size = "64x128x128" if arguments.quick else arguments.size
    z, y, x = (int(n) for n in size.split("x"))
    if arguments.one:
        run_one(arguments.one, (z, y, x))
        return
    print(
        "| pass | run | peak GiB | before the step | predicted above it | CPU-s |\n|---|--:|--:|--:|--:|--:|"
    )
    peaks = []
    for kind in ("training", "inference"):
        predicted = predict_peak_bytes(CONFIG, (z, y, x), training=kind == "training") / 2**30
        for run in range(arguments.repeats):
            peak, before, seconds = measure(kind, size)
            print(
                f"| {kind} | {run + 1} | {peak:.2f} | {before:.2f} | {predicted:.2f} | {seconds:.0f} |",
                flush=True,
            )
            peaks.append((kind, peak))
    ours = max(peak for kind, peak in peaks if kind == "training")
    report(
        f"resident memory of a training step on {z} × {y} × {x} voxels",
        "GiB",
        round(ours, 2),
        {},
        limit=LIMIT_GIB,
        ratio=round(ours / LIMIT_GIB, 3),
    )


if __name__ == "__main__":
    main()
