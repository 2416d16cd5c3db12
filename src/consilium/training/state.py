"""Everything that changes while training, in one object; a step is a function of it, a batch and a rate."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from consilium.errors import RunError
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.model import Model
from consilium.inference.preprocess import prior_logits
from consilium.losses.multiscale import MultiScaleLoss, downsample_reference
from consilium.networks.build import build_network, set_output_prior
from consilium.networks.parameters import choose_group
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.overfitting import OverfittingWatch
from consilium.training.plan import Plan
from consilium.training.workers import Workers

GradientChange = Callable[[Iterator[tuple[str, nn.Parameter]]], None]
"""Changes gradients in place after they were computed, e.g. a proximal term; gets the named parameters."""

FIRST_AVERAGE = 10
"""The moving average of the weights looks back over all steps until so many are done."""


@dataclass
class TrainingState:
    """A training between two steps.

    Attributes:
        network: The weights that are trained.
        loss: With its own weights where they are learned.
        optimiser: AdamW.
        average: Moving average of the network's floating tensors by name; empty where none is kept.
        watch: Over-fitting watch.
        device: Where it runs.
        step: Steps done.
        elapsed_s: Time spent on them, validation included.
        best_dice: Highest validation Dice so far; negative before the first.
        best_step: Where it was reached.
        recent: Per structure [sum of Dice, number] over the steps since the last validation.
        recent_loss: [sum, number] of the loss over the same steps.
        workers: The processes that train together; see `share_between`.
        shared: The network as all workers run it; None with one.
        takes_prior: Whether the network is one for adaptation: its output is added to the earlier contours.
    """

    network: nn.Module
    loss: MultiScaleLoss
    optimiser: torch.optim.AdamW
    average: dict[str, Tensor]
    watch: OverfittingWatch
    device: torch.device
    step: int = 0
    elapsed_s: float = 0.0
    best_dice: float = -1.0
    best_step: int = 0
    recent: list[list[float]] = field(default_factory=list)
    recent_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    workers: Workers = field(default_factory=Workers)
    shared: nn.Module | None = None
    takes_prior: bool = False

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter with its name: the network's, then the loss's."""
        yield from self.network.named_parameters()
        yield from ((f"loss.{name}", value) for name, value in self.loss.named_parameters())


def start_training(
    plan: Plan,
    config: TrainingConfig,
    prior: list[float],
    *,
    device: torch.device | None = None,
    network: nn.Module | None = None,
) -> TrainingState:
    """The state before the first step: weights from the seed, output bias at the prior.

    Args:
        plan: Of the training.
        config: Of the training.
        prior: Per structure the share of voxels inside it.
        device: Where to train; None: the GPU where there is one.
        network: Trained as it is, instead of the plan's; ``net(image)`` must return a list of logits.
    """
    device = device or choose_device()
    if network is None:
        network_config = plan.network_for(bf16=plan.network.bf16 and has_fast_bf16(device))
        network = build_network(network_config, seed=config.seed)
        set_output_prior(network, plan.output_start(prior))
    network.to(device).train()
    scales = max(1, len(config.scale_weights))
    loss = (
        MultiScaleLoss("learned", scales=scales)
        if config.learned_weights
        else MultiScaleLoss(config.scale_weights or (1.0,))
    ).to(device)
    state = TrainingState(
        network=network,
        loss=loss,
        optimiser=_build_optimiser(network, loss, config),
        average={},
        watch=OverfittingWatch(action=config.watch),
        device=device,
        recent=[[0.0, 0.0] for _ in plan.structures],
        takes_prior=plan.takes_prior,
    )
    if config.average:
        state.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return state


def share_between(state: TrainingState, workers: Workers) -> None:
    """Let several workers take each step together, each on its own part of the batch.

    Everything but the batch must be the same at all of them, and stays the same.
    """
    if workers.count > 1:
        unused = 0.0 in state.loss.weights
        state.workers, state.shared = workers, workers.share_network(state.network, some_unused=unused)


def take_step(
    state: TrainingState,
    batch: Batch,
    config: TrainingConfig,
    *,
    rate: float,
    change_gradients: GradientChange | None = None,
) -> float:
    """One step on one batch; returns the loss.

    The same state, batch and rate give the same bits on the same machine with the same number of threads.

    Raises:
        RunError: The loss or the gradient is no finite number.
    """
    torch.manual_seed(hash_seed(config.seed, state.step))  # dropout
    dtype = next(state.network.parameters()).dtype
    image, reference = batch.image.to(state.device, dtype), batch.reference.to(state.device)
    known = batch.known.to(state.device)
    state.optimiser.zero_grad(set_to_none=True)
    workers = state.workers
    logits = (state.shared or state.network)(image)
    if state.takes_prior:
        earlier = prior_logits(image, reference.shape[1])
        logits = [one + downsample_reference(earlier, one.shape[2:]) for one in logits]
    value = state.loss(logits, reference, known, join=workers.join if workers.count > 1 else None)
    _note_dice(state, logits[0].detach(), reference, batch.known)
    value.backward()
    del logits
    if change_gradients is not None:
        change_gradients(state.named_parameters())
    norm = nn.utils.clip_grad_norm_([p for _, p in state.named_parameters()], config.clip_norm)
    loss = float(value.detach())
    if not math.isfinite(loss) or not math.isfinite(float(norm)):
        raise RunError(
            f"step {state.step}, case {', '.join(batch.case_ids)}: loss and gradient must be finite; found "
            f"{loss} and {float(norm)}. Lower the rate from {rate:g}, or look at that case's image; the last "
            "checkpoint holds the state before."
        )
    for group in state.optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    state.optimiser.step()
    state.step += 1
    state.recent_loss = [state.recent_loss[0] + loss, state.recent_loss[1] + 1]
    _update_average(state, config.average)
    return loss


def rate_at(share: float, config: TrainingConfig) -> float:
    """Learning rate at a share of the budget: a straight rise, then half a cosine down to one per cent."""
    if share < config.warm_up:
        return config.rate * max(share / config.warm_up, 0.01)
    past = (share - config.warm_up) / (1 - config.warm_up)
    return config.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(past, 1.0))))


def weights_to_keep(state: TrainingState) -> dict[str, Tensor]:
    """The weights that are validated and kept: the average, or the trained ones where none is kept."""
    return dict(state.average) if state.average else dict(state.network.state_dict())


def model_now(state: TrainingState, plan: Plan, scratch: nn.Module) -> Model:
    """The model as it would be used now; ``scratch`` is a copy of the network that is overwritten."""
    scratch.load_state_dict(weights_to_keep(state))
    scratch.eval()
    return Model(description=plan.describe_model(), network=scratch, device=state.device)


def take_recent(state: TrainingState) -> tuple[list[float], float]:
    """Mean Dice per structure and mean loss of the training batches since the last call; NaN without any."""
    means = [total / count if count else math.nan for total, count in state.recent]
    loss = state.recent_loss[0] / state.recent_loss[1] if state.recent_loss[1] else math.nan
    state.recent = [[0.0, 0.0] for _ in state.recent]
    state.recent_loss = [0.0, 0.0]
    return means, loss


def hash_seed(seed: int, step: int) -> int:
    """A seed for torch's global generator that differs for every seed and step."""
    return (seed * 1_000_003 + step) % 2**63


def _build_optimiser(network: nn.Module, loss: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    members: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": list(loss.parameters()), "heads": []}
    for name, parameter in network.named_parameters():
        members[choose_group(name, parameter.ndim)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": members["decayed"], "weight_decay": config.weight_decay, "factor": 1.0},
        {"params": members["plain"], "weight_decay": 0.0, "factor": 1.0},
        {"params": members["heads"], "weight_decay": 0.0, "factor": config.head_rate / config.rate},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.99), eps=1e-8, fused=True)


@torch.no_grad()
def _update_average(state: TrainingState, share: float) -> None:
    """Average over about the last ``share`` of the steps done."""
    if not state.average:
        return
    keep = 1.0 - 1.0 / max(1.0, min(float(state.step), max(FIRST_AVERAGE, share * state.step)))
    for name, value in state.network.state_dict().items():
        target = state.average[name]
        if target.is_floating_point():
            target.lerp_(value, 1.0 - keep)
        else:
            target.copy_(value)


@torch.no_grad()
def _note_dice(state: TrainingState, logits: Tensor, reference: Tensor, known: Tensor) -> None:
    """Add the batch's Dice of every structure that it holds to ``state.recent``."""
    inside = logits > 0
    for s in range(known.shape[1]):
        rows = known[:, s].nonzero().flatten().tolist()
        if not rows:
            continue
        ours, theirs = inside[rows, s], reference[rows, s]
        wanted = int(theirs.sum())
        if wanted:
            both = int((ours & theirs).sum())
            state.recent[s][0] += 2 * both / (int(ours.sum()) + wanted)
            state.recent[s][1] += 1
