"""Time and memory of a training step in TensorFlow beside torch's, and what its invertible backward saves.

Each figure comes from a process of its own, one thread, float32. Memory is the highest resident memory during
a step above what the process held before it; steps on small images come first, so that the graph is built and
its kernels are compiled beforehand. In the processes that measure memory every tensor is mapped on its own,
so that holes in the heap, which differ from run to run, do not count; times come from others, without that.
``ratio`` is the peak of the invertible backward over that of the plain one at 12 couplings of 32 channels;
its limit is 0.5. ``peers`` holds all other figures of the same run.

    python -m benchmarks.tensorflow_step [--quick] [--repeats 3]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.measure import extra_peak_mib, median, report

DEEP = {"kind": "iunet", "channels": (32,), "stem": "plain"}
USUAL = {
    "unet3d": {"kind": "unet3d", "channels": (16, 32, 64)},
    "iunet": {"kind": "iunet", "channels": (32, 64, 128)},
}


def build_step(framework: str, network: dict[str, Any]) -> Any:
    """``step(batch)``: one training step of a fresh network."""
    from consilium.networks.build import NetworkConfig, build_network
    from consilium.training.config import TrainingConfig

    config, training = NetworkConfig(out_channels=2, **network), TrainingConfig(average=0.0)
    built = build_network(config, seed=0)
    if framework == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(1)
        from consilium.tensorflow.state import start_state

        parameters = {name: value.detach().numpy() for name, value in built.named_parameters()}
        state = start_state(config, parameters, training, structures=2)
        return lambda batch: state.take_step(batch, training, rate=1e-3)
    import torch

    from consilium.losses.multiscale import MultiScaleLoss
    from consilium.training.overfitting import OverfittingWatch
    from consilium.training.state import TrainingState, take_step

    torch.set_num_threads(1)
    groups = [{"params": list(built.parameters()), "factor": 1.0}]
    state_ = TrainingState(
        network=built.train(),
        loss=MultiScaleLoss((1.0,)),
        optimiser=torch.optim.AdamW(groups, lr=1e-3, fused=True),
        average={},
        watch=OverfittingWatch(action="off"),
        device=torch.device("cpu"),
        recent=[[0.0, 0.0]] * 2,
    )
    return lambda batch: take_step(state_, batch, training, rate=1e-3)


def make_batch(size: int) -> Any:
    """One sample of random voxels and two balls."""
    import torch

    from consilium.training.batch import Batch

    rng = np.random.default_rng(0)
    reference = rng.random((1, 2, size, size, size)) < 0.2
    return Batch(
        image=torch.from_numpy(rng.normal(size=(1, 1, size, size, size)).astype(np.float32)),
        reference=torch.from_numpy(reference),
        known=torch.ones(1, 2, dtype=torch.bool),
        case_ids=("phantom",),
    )


def work(framework: str, network: dict[str, Any], size: int, repeats: int) -> None:
    """In a process of its own: print peak (MiB) and CPU-seconds of steps."""
    step = build_step(framework, network)
    step(make_batch(8))
    step(make_batch(12))
    batch = make_batch(size)
    peak = extra_peak_mib(lambda: step(batch))
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        step(batch)
        seconds.append(time.process_time() - before)
    print(json.dumps({"peak_mib": peak, "seconds": seconds}))


def run_alone(
    framework: str, network: dict[str, Any], size: int, repeats: int, **environment: str
) -> dict[str, Any]:
    """What `work` prints in a new process."""
    arguments = [framework, json.dumps(network), str(size), str(repeats)]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.tensorflow_step", "--work", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **environment},
    )
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def measure(framework: str, network: dict[str, Any], size: int, repeats: int) -> dict[str, Any]:
    """The figures of one network."""
    found = run_alone(framework, network, size, 0, MALLOC_MMAP_THRESHOLD_=str(2**18))
    found["seconds"] = run_alone(framework, network, size, repeats)["seconds"] if repeats else []
    name = (
        f"{network['kind']} {network.get('blocks', '')} {'' if network.get('reversible', True) else 'plain'}"
    )
    seconds = found["seconds"]
    spread = f"{min(seconds):.2f}-{max(seconds):.2f}" if seconds else "-"
    print(
        f"{framework:10s} {name:24s} {size}^3: {found['peak_mib']:7.1f} MiB, "
        f"{median(seconds):.2f} CPU-s ({spread})",
        flush=True,
    )
    return found


def main() -> None:
    """Measure everything and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=4, default=None)
    chosen = parser.parse_args()
    if chosen.work:
        framework, network, size, repeats = chosen.work
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(network).items()}
        work(framework, settings, int(size), int(repeats))
        return
    repeats = 1 if chosen.quick else chosen.repeats
    size = 24 if chosen.quick else 40
    deep = {"blocks": (12,), **DEEP}
    ours = measure("tensorflow", deep, size, repeats)
    plain = measure("tensorflow", {**deep, "reversible": False}, size, repeats)
    peers = {"tensorflow plain backward (MiB)": plain["peak_mib"]}
    if not chosen.quick:
        deeper = measure("tensorflow", {**deep, "blocks": (24,)}, size, repeats)
        torch = measure("torch", deep, size, repeats)
        peers |= {
            "tensorflow twice as deep (MiB)": deeper["peak_mib"],
            "torch (MiB)": torch["peak_mib"],
            "tensorflow (CPU-s)": median(ours["seconds"]),
            "tensorflow plain backward (CPU-s)": median(plain["seconds"]),
            "torch (CPU-s)": median(torch["seconds"]),
        }
        for name, network in USUAL.items():
            for framework in ("torch", "tensorflow"):
                found = measure(framework, network, 48, repeats)
                peers[f"{name} of 48^3, {framework} (MiB)"] = found["peak_mib"]
                peers[f"{name} of 48^3, {framework} (CPU-s)"] = median(found["seconds"])
    report(
        "What does the invertible backward of the TensorFlow iunet save, at 12 couplings of 32 channels?",
        "MiB",
        ours["peak_mib"],
        {name: round(value, 3) for name, value in peers.items()},
        limit=0.5,
        ratio=ours["peak_mib"] / plain["peak_mib"],
    )


if __name__ == "__main__":
    main()
