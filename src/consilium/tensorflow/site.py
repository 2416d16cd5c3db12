"""Training at one site of a federation in TensorFlow, for `consilium.training.site.update_at_site`.

Cases are prepared and batches drawn by the same code as for torch, which runs on the CPU: what a step learns
from does not depend on the framework.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from consilium.errors import CheckpointError, ConfigurationError
from consilium.networks.build import build_network, set_output_prior
from consilium.tensorflow.optimiser import AdamW
from consilium.tensorflow.state import LOSS_PREFIX, TensorflowState, start_state
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.overfitting import OverfittingWatch
from consilium.training.plan import Plan
from consilium.training.site import SiteFramework
from consilium.training.state import GradientChange
from consilium.types import Array

FIRST_MOMENT, SECOND_MOMENT, STEPS, LOSS = "exp_avg", "exp_avg_sq", "step", "loss"
"""Kinds of arrays that a site remembers, named as torch's optimiser names them: either framework goes on from
the other's memory."""


def start(plan: Plan, config: TrainingConfig, prior: list[float]) -> TensorflowState:
    """The state before the first step: the same first weights as torch's for the same seed.

    Raises:
        ConfigurationError: A network for adaptation.
    """
    if plan.takes_prior:
        raise ConfigurationError(
            "training: networks for adaptation are trained in PyTorch only; this one was asked for in "
            "TensorFlow. Leave out --framework tensorflow, or --adaptation."
        )
    network = build_network(plan.network_for(bf16=False), seed=config.seed)
    set_output_prior(network, prior)
    parameters = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    state = start_state(plan.network_for(bf16=False), parameters, config, structures=len(plan.structures))
    state.watch = OverfittingWatch(action=config.watch)
    return state


def take_step(
    state: TensorflowState,
    batch: Batch,
    config: TrainingConfig,
    *,
    rate: float,
    change_gradients: GradientChange | None = None,
) -> float:
    """`consilium.training.state.take_step` in TensorFlow."""
    return state.take_step(batch, config, rate=rate, change_gradients=change_gradients)


def get_parameters(state: TensorflowState) -> dict[str, Array]:
    """The network's arrays by canonical name."""
    return state.network.get_parameters()


def put_parameters(state: TensorflowState, parameters: Mapping[str, Array]) -> None:
    """Copy arrays into the network; names that are absent keep their values.

    Raises:
        CheckpointError: A name that the network does not have, or another shape.
    """
    state.network.put_parameters(parameters)


def get_memory(state: TensorflowState) -> dict[str, Array]:
    """What the next round at this site goes on from beside the weights: the optimiser's moments, and the
    loss's own weights.
    """
    memory: dict[str, Array] = {}
    if state.loss.log_variance is not None:
        memory[f"{LOSS}/log_variance"] = np.array(state.loss.log_variance.numpy())
    if not isinstance(state.optimiser, AdamW):
        return memory
    for name, (first, second) in state.optimiser.moments.items():
        taken = np.float32(state.optimiser.taken[name].numpy())
        if not taken:
            continue
        memory[f"{STEPS}/{name}"] = np.array(taken)
        memory[f"{FIRST_MOMENT}/{name}"] = np.array(first.numpy())
        memory[f"{SECOND_MOMENT}/{name}"] = np.array(second.numpy())
    return memory


def put_memory(state: TensorflowState, memory: Mapping[str, Array]) -> None:
    """Go on from `get_memory`'s arrays; an empty mapping starts the optimiser anew.

    Raises:
        CheckpointError: Arrays of another network.
    """
    moments_of, taken_of = {}, {}
    if isinstance(state.optimiser, AdamW):
        moments_of, taken_of = state.optimiser.moments, state.optimiser.taken
    for variable in (*taken_of.values(), *(moment for pair in moments_of.values() for moment in pair)):
        variable.assign(tf.zeros_like(variable))
    for key, value in memory.items():
        kind, _, name = key.partition("/")
        if kind == STEPS:
            own = taken_of.get(name)
        elif kind == LOSS:
            own = state.trained().get(LOSS_PREFIX + name)
        elif kind in (FIRST_MOMENT, SECOND_MOMENT):
            pair = moments_of.get(name)
            own = None if pair is None else pair[kind == SECOND_MOMENT]
        else:
            continue
        if own is None or tuple(own.shape) != value.shape:
            raise CheckpointError(f"{name}: the memory of another network cannot be gone on from.")
        own.assign(tf.cast(value, own.dtype))


TENSORFLOW = SiteFramework(
    start=start,
    take_step=take_step,
    get_parameters=get_parameters,
    put_parameters=put_parameters,
    get_memory=get_memory,
    put_memory=put_memory,
)
