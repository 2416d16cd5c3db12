"""Training at one site of a federation: parameters in, some steps, parameters and counts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from consilium.errors import CheckpointError
from consilium.training.batch import BatchRecipe, make_batch
from consilium.training.config import TrainingConfig
from consilium.training.data import PreparedCase
from consilium.training.state import GradientChange, TrainingState, rate_at, take_recent, take_step
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
        structures: Names, in the order of the network's outputs.
        recipe: How batches are made.
        config: Of the training.
        steps: Of this round.
        total_steps: Of all rounds together, for the learning rate.
    """

    structures: tuple[str, ...]
    recipe: BatchRecipe
    config: TrainingConfig
    steps: int
    total_steps: int


def update_at_site(
    state: TrainingState,
    parameters: Mapping[str, Array],
    cases: Sequence[PreparedCase],
    task: SiteTask,
    *,
    change_gradients: GradientChange | None = None,
    progress: Progress = no_progress,
) -> SiteUpdate:
    """Take the received weights, train, and hand the new ones back.

    The optimiser's moments stay in ``state``, so a federation of one site, whose average is its own update,
    equals local training bit for bit.

    Args:
        state: Of this site, after the last round (or from `start_training` before the first).
        parameters: Received; an empty mapping keeps the state's own.
        cases: Of this site.
        task: What is the same in every round, and how many steps this one takes.
        change_gradients: E.g. a proximal term or control variates.
        progress: Told after each step.

    Raises:
        CheckpointError: Parameters of another network.
    """
    if parameters:
        put_parameters(state, parameters)
    for done in range(task.steps):
        rate = rate_at(min(1.0, state.step / task.total_steps), task.config)
        batch = make_batch(task.recipe, cases, state.step)
        take_step(state, batch, task.config, rate=rate, change_gradients=change_gradients)
        progress("training at this site", done + 1, task.steps)
    dice, loss = take_recent(state)
    return SiteUpdate(
        parameters=get_parameters(state),
        cases=len(cases),
        cases_by_structure={
            name: count
            for s, name in enumerate(task.structures)
            if (count := sum(bool(case.known[s]) for case in cases))
        },
        loss=loss,
        dice={name: value for name, value in zip(task.structures, dice, strict=True) if value == value},
    )


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
