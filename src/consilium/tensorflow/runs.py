"""A run in TensorFlow, for `consilium.training.loop.train`: the same folder, checkpoints and model files.

Batches are drawn, and validation volumes contoured, by the code that torch uses, on the same weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilium.inference.device import choose_device
from consilium.inference.model import Model, build_model
from consilium.tensorflow.site import (
    FIRST_MOMENT,
    LOSS,
    SECOND_MOMENT,
    STEPS,
    get_memory,
    put_memory,
    put_parameters,
    start,
    take_step,
)
from consilium.tensorflow.state import TensorflowState
from consilium.tensorflow.workers import TensorflowWorkers
from consilium.training.checkpoint import part_of
from consilium.training.framework import TrainingFramework
from consilium.training.plan import Plan


def share(state: TensorflowState, workers: Any) -> None:
    """Let several workers take each step together."""
    if isinstance(workers, TensorflowWorkers):
        state.workers = workers


def pack(state: TensorflowState) -> dict[str, Tensor]:
    """Every array of a state, by the names of `consilium.training.checkpoint.pack_state`."""
    arrays = {f"network.{name}": value for name, value in state.network.get_parameters().items()}
    arrays |= {f"average.{name}": value.numpy() for name, value in state.average.items()}
    for key, value in get_memory(state).items():
        kind, _, name = key.partition("/")
        arrays[f"loss.{name}" if kind == LOSS else f"optimiser.{name}.{kind}"] = value
    return _tensors(arrays)


def unpack(state: TensorflowState, tensors: dict[str, Tensor]) -> None:
    """Put what either framework's ``pack`` gave into a state."""
    arrays = {name: value.numpy() for name, value in tensors.items()}
    put_parameters(state, part_of(arrays, "network."))
    for name, value in part_of(arrays, "average.").items():
        state.average[name].assign(value)
    memory = {f"{LOSS}/{name}": value for name, value in part_of(arrays, "loss.").items()}
    for key, value in part_of(arrays, "optimiser.").items():
        name, _, kind = key.rpartition(".")
        if kind in (FIRST_MOMENT, SECOND_MOMENT, STEPS):
            memory[f"{kind}/{name}"] = value
    put_memory(state, memory)


def weights_to_keep(state: TensorflowState) -> Mapping[str, Tensor]:
    """The weights that are validated and kept."""
    return _tensors(state.weights_to_keep())


def follow(state: TensorflowState, plan: Plan) -> Callable[[], Model]:
    """A function that gives the model as it would be used now."""
    device = choose_device()
    return lambda: build_model(plan.describe_model(), weights_to_keep(state), device=device)


def build_framework(workers: TensorflowWorkers | None = None) -> TrainingFramework:
    """What `consilium.training.loop.train` needs to train in TensorFlow."""
    framework = TrainingFramework(
        start=start,
        share=share,
        take_step=take_step,
        pack=pack,
        unpack=unpack,
        follow=follow,
        weights_to_keep=weights_to_keep,
    )
    return framework if workers is None else replace(framework, workers=workers)


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
