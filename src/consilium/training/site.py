"""Training at one site of a federation: parameters in, some steps, parameters and counts out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from consilium.errors import CheckpointError
from consilium.training.batch import BatchRecipe, make_batch
from consilium.training.config import TrainingConfig
from consilium.training.data import PreparedCase
from consilium.training.loop import recipe_at
from consilium.training.plan import Plan
from consilium.training.state import (
    GradientChange,
    TrainingState,
    rate_at,
    start_training,
    take_recent,
    take_step,
)
from consilium.types import Array, Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """What training at a site ends with.

    Attributes:
        parameters: Every trained weight of the network by name, float32.
        cases: Number of training cases.
        cases_by_structure: Structure -> number of those in which it is known; structures without any are left
            out.
        loss: Mean over the steps.
        dice: Structure -> mean Dice on the training batches; left out where it was never there.
    """

    parameters: dict[str, Array]
    cases: int
    cases_by_structure: dict[str, int]
    loss: float
    dice: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SiteTask:
    """What a site is asked to do.

    Args:
        plan: Of the training; the same at every site.
        recipe: How batches are made of this site's cases.
        config: Of the training.
        steps: Of this round.
        total_steps: Of all rounds together: the state's step, as a share of them, gives the learning rate.
    """

    plan: Plan
    recipe: BatchRecipe
    config: TrainingConfig
    steps: int
    total_steps: int


@dataclass(frozen=True, kw_only=True)
class SiteFramework:
    """What training at a site needs of a framework; each has one, `TORCH` is this module's.

    Args:
        start: The state before the first step, from plan, settings and prior.
        take_step: As `consilium.training.state.take_step`, on the framework's own state.
        get_parameters: The network's arrays by canonical name.
        put_parameters: Copies arrays into the network.
        get_memory: What the next round goes on from, see `get_memory`.
        put_memory: Its inverse.
    """

    start: Callable[[Plan, TrainingConfig, list[float]], Any]
    take_step: Callable[..., float]
    get_parameters: Callable[[Any], dict[str, Array]]
    put_parameters: Callable[[Any, Mapping[str, Array]], None]
    get_memory: Callable[[Any], dict[str, Array]]
    put_memory: Callable[[Any, Mapping[str, Array]], None]


def update_at_site(
    state: Any,
    parameters: Mapping[str, Array],
    cases: Sequence[PreparedCase],
    task: SiteTask,
    *,
    change_gradients: GradientChange | None = None,
    framework: SiteFramework | None = None,
    progress: Progress = no_progress,
) -> SiteUpdate:
    """Take the received weights, train, and hand the new ones back.

    Where the optimiser's moments of the round before stay in ``state`` (see `get_memory`), a federation of
    one site, whose average is its own update, equals local training bit for bit.

    Args:
        state: Of this site, after the last round (or from `start_training` before the first).
        parameters: Received; an empty mapping keeps the state's own.
        cases: Of this site.
        task: What is the same in every round, and how many steps this one takes.
        change_gradients: E.g. a proximal term or control variates.
        framework: That ``state`` belongs to; None: torch.
        progress: Told after each step.

    Raises:
        CheckpointError: Parameters of another network.
    """
    framework = framework or TORCH
    if parameters:
        framework.put_parameters(state, parameters)
    for done in range(task.steps):
        share = min(1.0, state.step / task.total_steps)
        batch = make_batch(recipe_at(task.recipe, task.plan, share), cases, state.step)
        rate = rate_at(share, task.config)
        framework.take_step(state, batch, task.config, rate=rate, change_gradients=change_gradients)
        progress("training at this site", done + 1, task.steps)
    dice, loss = take_recent(state)
    structures = task.plan.structures
    return SiteUpdate(
        parameters=framework.get_parameters(state),
        cases=len(cases),
        cases_by_structure=count_known(cases, structures),
        loss=loss,
        dice={name: value for name, value in zip(structures, dice, strict=True) if value == value},
    )


def count_known(cases: Sequence[PreparedCase], structures: Sequence[str]) -> dict[str, int]:
    """Structure -> number of cases in which it is known; structures without any are left out."""
    counts = {name: sum(bool(case.known[s]) for case in cases) for s, name in enumerate(structures)}
    return {name: count for name, count in counts.items() if count}


def get_memory(state: TrainingState) -> dict[str, Array]:
    """What the next round at this site goes on from beside the weights: the optimiser's moments, and the
    loss's own weights.
    """
    memory = {f"loss/{name}": _as_array(value) for name, value in state.loss.state_dict().items()}
    for name, parameter in state.named_parameters():
        for kind, value in state.optimiser.state.get(parameter, {}).items():
            memory[f"{kind}/{name}"] = _as_array(value)
    return memory


def put_memory(state: TrainingState, memory: Mapping[str, Array]) -> None:
    """Go on from `get_memory`'s arrays; an empty mapping starts the optimiser anew.

    Raises:
        CheckpointError: Arrays of another network.
    """
    state.optimiser.state.clear()
    by_name = dict(state.named_parameters())
    loss = {}
    for key, value in memory.items():
        kind, _, name = key.partition("/")
        tensor = torch.from_numpy(np.array(value))
        if kind == "loss":
            loss[name] = tensor
            continue
        if name not in by_name:
            raise CheckpointError(f"{name}: the memory of another network cannot be gone on from.")
        parameter = by_name[name]
        # The fused optimiser keeps its step beside the weights.
        state.optimiser.state[parameter][kind] = tensor.to(parameter.device)
    if loss:
        state.loss.load_state_dict(loss)


def _as_array(value: Any) -> Array:
    return np.array(torch.as_tensor(value).detach().cpu().numpy())


def get_parameters(state: TrainingState) -> dict[str, Array]:
    """The network's tensors as arrays, by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in state.network.state_dict().items()}


def put_parameters(state: TrainingState, parameters: Mapping[str, Array]) -> None:
    """Copy arrays into the network; names that are absent keep their values.

    Raises:
        CheckpointError: A name that the network does not have, or another shape.
    """
    own = state.network.state_dict()
    for name, value in parameters.items():
        if name not in own or tuple(value.shape) != tuple(own[name].shape):
            expected = tuple(own[name].shape) if name in own else "no such parameter"
            raise CheckpointError(
                f"{name}: received parameters must fit the network; got {tuple(value.shape)}, "
                f"expected {expected}."
            )
        with torch.no_grad():
            own[name].copy_(torch.from_numpy(np.array(value)))


TORCH = SiteFramework(
    start=start_training,
    take_step=take_step,
    get_parameters=get_parameters,
    put_parameters=put_parameters,
    get_memory=get_memory,
    put_memory=put_memory,
)
