"""Steps on a batch, by one process or by several on a sample each; the first writes the weights.

By AdamW in float64; in float32 by plain descent, since Adam makes a step of a gradient that is mere rounding.

Usage: python -m tests.tensorflow.joined_steps torch|tensorflow float64|float32 OUT (started by torchrun, or
with TF_CONFIG).
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.networks.config import NetworkConfig
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.state import share_between, take_step
from consilium.training.workers import Workers, join_workers, leave_workers
from consilium.types import Array
from tests.tensorflow.steps import SMALL, make_batch_of, start_tensorflow, start_torch

STEPS, RATE, SHAPE = 3, 1e-2, (5, 6, 7)
CONFIG = TrainingConfig(rate=RATE, head_rate=3e-2, scale_weights=(1.0, 0.5))
SETTINGS = {
    "unet3d": (CONFIG, 2),
    "iunet": (CONFIG, 2),
    "iunet, learned weights": (replace(CONFIG, scale_weights=(1.0, 1.0), learned_weights=True), 2),
}


def take_steps(framework: str, precision: str, workers: Any = None) -> dict[str, Array]:
    """Every weight after the steps; with ``workers`` this process sees the sample of its rank alone."""
    found: dict[str, Array] = {}
    plain, dtype = precision == "float32", getattr(torch, precision)
    for name, (config, heads) in SETTINGS.items():
        kind = name.partition(",")[0]
        network = NetworkConfig(**{**SMALL, "kind": kind, "blocks": (1, 1, 1), "heads": heads})
        start = start_torch if framework == "torch" else start_tensorflow
        state: Any = start(network, config, dtype, plain_descent=plain)
        if framework == "torch":
            share_between(state, workers or Workers())
        else:
            state.workers = workers
        for number in range(STEPS):
            batch = make_batch_of(SHAPE, SMALL["out_channels"], seed=number)
            batch = batch if workers is None else _part(batch, workers.rank)
            if framework == "torch":
                take_step(state, batch, config, rate=RATE)
            else:
                state.take_step(batch, config, rate=RATE)
        if framework == "torch":
            weights = {n: v.detach().numpy() for n, v in state.named_parameters()}
        else:
            weights = {n: v.numpy() for n, v in state.trained().items()}
        found |= {f"{name}/{n}": np.array(value) for n, value in weights.items()}
    return found


def _part(batch: Batch, rank: int) -> Batch:
    mine = slice(rank, rank + 1)
    return Batch(
        image=batch.image[mine],
        reference=batch.reference[mine],
        known=batch.known[mine],
        case_ids=batch.case_ids[mine],
    )


def main(framework: str, precision: str, out: Path) -> None:
    """Be one of the workers."""
    workers: Any
    if framework == "torch":
        torch.set_num_threads(1)
        workers = join_workers()
    else:
        from consilium.tensorflow.workers import join_tensorflow_workers

        workers = join_tensorflow_workers()
    assert workers is not None
    assert workers.count == 2
    found = take_steps(framework, precision, workers)
    if workers.leads:
        np.savez(out, **found)
    workers.wait()
    leave_workers()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
