"""The training loop of a cascade's two networks: budget, moving average, and a state that can go on."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from consilium.errors import RunError
from consilium.inference.model import load_weights
from consilium.training.checkpoint import (
    load_optimiser,
    optimiser_tensors,
    part_of,
    read_checkpoint,
    write_checkpoint,
)
from consilium.training.config import Budget
from consilium.types import Progress, no_progress

RISE = 0.05
"""Share of the budget in which the rate rises."""

SAVE_EVERY_S = 60.0
CLIP_NORM = 5.0
WEIGHT_DECAY = 1e-2
AVERAGE = 0.99


@dataclass
class Learner:
    """A network between two steps.

    Attributes:
        network: The weights that are trained.
        optimiser: AdamW; each group carries its ``factor`` of the rate.
        average: Moving average of the weights, in the order of the parameters.
        step: Steps done.
        elapsed_s: Time spent on them.
        losses: Of the steps of this sitting.
    """

    network: nn.Module
    optimiser: torch.optim.AdamW
    average: list[Tensor]
    step: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter with its name."""
        yield from self.network.named_parameters()

    def give_average(self) -> None:
        """Put the average into the network; the training is over."""
        with torch.no_grad():
            for kept, now in zip(self.average, self.network.parameters(), strict=True):
                now.copy_(kept)


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """How one sitting of a training is run.

    Args:
        checkpoint: File of the state, written every minute and at the end of the sitting; None: not kept.
        fingerprint: Of everything that the weights depend on; a state of another one is refused.
        progress: Told after each step.
        should_stop: Asked before each step.
        name: What progress calls it.
    """

    checkpoint: Path | None = None
    fingerprint: str = ""
    progress: Progress = no_progress
    should_stop: Callable[[], bool] = lambda: False
    name: str = "training"


def start_learner(network: nn.Module, *, rate: float, head_rate: float) -> Learner:
    """A learner before its first step."""
    heads = [p for name, p in network.named_parameters() if "heads." in name]
    others = [p for name, p in network.named_parameters() if "heads." not in name]
    groups = [
        {"params": others, "weight_decay": WEIGHT_DECAY, "factor": 1.0},
        {"params": heads, "weight_decay": 0.0, "factor": head_rate / rate},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate)
    return Learner(network, optimiser, [p.detach().clone() for p in network.parameters()])


def learn(
    learner: Learner,
    compute_loss: Callable[[int], Tensor],
    budget: Budget,
    sitting: Sitting,
    *,
    rate: float,
    steps_per_epoch: int,
) -> bool:
    """Train until the budget is spent, from the checkpoint where there is one.

    Args:
        learner: Changed in place.
        compute_loss: The loss of a step, by its number; everything random in it is a function of that.
        budget: How long.
        sitting: See there.
        rate: Highest learning rate.
        steps_per_epoch: For a budget in epochs.

    Returns:
        Whether the budget is spent; else it was stopped, and the checkpoint holds where.

    Raises:
        RunError: A loss or gradient that is no finite number.
    """
    _resume(learner, sitting)
    now = time.process_time if budget.cpu_time else time.monotonic
    before, started, saved = learner.elapsed_s, now(), time.monotonic()
    while True:
        learner.elapsed_s = before + now() - started
        share = budget.share(step=learner.step, steps_per_epoch=steps_per_epoch, elapsed_s=learner.elapsed_s)
        stopped = share < 1 and sitting.should_stop()
        if share >= 1 or stopped or time.monotonic() - saved > SAVE_EVERY_S:
            saved = time.monotonic()
            _save(learner, sitting)
        sitting.progress(sitting.name, int(min(share, 1.0) * 1000), 1000)
        if share >= 1 or stopped:
            return not stopped
        _set_rate(learner.optimiser, rate, share)
        _take_step(learner, compute_loss(learner.step))


def _take_step(learner: Learner, loss: Tensor) -> None:
    value = float(loss.detach())
    learner.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(learner.network.parameters(), CLIP_NORM))
    if not np.isfinite(value) or not np.isfinite(norm):
        raise RunError(
            f"training, step {learner.step}: loss and gradient must be finite; found {value} and {norm}. "
            "Lower the rate."
        )
    learner.optimiser.step()
    keep = min(AVERAGE, (learner.step + 1) / (learner.step + 10))
    with torch.no_grad():
        for kept, now in zip(learner.average, learner.network.parameters(), strict=True):
            kept.lerp_(now, 1 - keep)
    learner.step += 1
    learner.losses.append(value)


def _set_rate(optimiser: torch.optim.Optimizer, highest: float, share: float) -> None:
    """Rise over the first twentieth of a training, then fall as a cosine to nothing."""
    factor = share / RISE if share < RISE else 0.5 * (1 + np.cos(np.pi * (share - RISE) / (1 - RISE)))
    for group in optimiser.param_groups:
        group["lr"] = highest * group["factor"] * max(float(factor), 1e-3)


def _save(learner: Learner, sitting: Sitting) -> None:
    if sitting.checkpoint is None:
        return
    tensors = {f"network.{name}": value for name, value in learner.network.state_dict().items()}
    tensors |= {f"average.{k}": value for k, value in enumerate(learner.average)}
    tensors |= optimiser_tensors(learner.named_parameters(), learner.optimiser)
    scalars = json.dumps({"step": learner.step, "elapsed_s": learner.elapsed_s})
    write_checkpoint(sitting.checkpoint, tensors, scalars, fingerprint=sitting.fingerprint)


def _resume(learner: Learner, sitting: Sitting) -> None:
    if sitting.checkpoint is None or not sitting.checkpoint.exists():
        return
    tensors, record = read_checkpoint(sitting.checkpoint, fingerprint=sitting.fingerprint)
    load_weights(learner.network, part_of(tensors, "network."))
    for name, value in part_of(tensors, "average.").items():
        learner.average[int(name)].copy_(value)
    load_optimiser(learner.named_parameters(), learner.optimiser, part_of(tensors, "optimiser."))
    learner.step, learner.elapsed_s = int(record["step"]), float(record["elapsed_s"])
