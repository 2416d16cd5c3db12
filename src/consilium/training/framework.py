"""What a run needs of a framework: torch's here, TensorFlow's in `consilium.tensorflow.runs`."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from consilium.inference.model import Model
from consilium.training.checkpoint import pack_state, unpack_state
from consilium.training.config import TrainingConfig
from consilium.training.plan import Plan
from consilium.training.state import (
    TrainingState,
    model_now,
    share_between,
    start_training,
    take_step,
    weights_to_keep,
)
from consilium.training.workers import Group, Workers


@dataclass(frozen=True, kw_only=True)
class TrainingFramework:
    """How a run starts, steps and is kept.

    Its states have the bookkeeping of `TrainingState`: steps, time, best Dice, watch, recent figures.

    Args:
        start: The state before the first step, from plan, settings and prior.
        share: Lets several workers take each step together.
        take_step: As `consilium.training.state.take_step`.
        pack: As `consilium.training.checkpoint.pack_state`.
        unpack: As `consilium.training.checkpoint.unpack_state`.
        follow: A function that gives the model as it would be used now.
        weights_to_keep: As `consilium.training.state.weights_to_keep`.
        workers: The processes that train together, each with its own part of every batch, which is as many
            times larger; the first one validates, writes and decides.
    """

    start: Callable[[Plan, TrainingConfig, list[float]], Any]
    share: Callable[[Any, Any], None]
    take_step: Callable[..., float]
    pack: Callable[[Any], dict[str, Tensor]]
    unpack: Callable[[Any, dict[str, Tensor]], None]
    follow: Callable[[Any, Plan], Callable[[], Model]]
    weights_to_keep: Callable[[Any], Mapping[str, Tensor]]
    workers: Group = field(default_factory=Workers)


def _follow(state: TrainingState, plan: Plan) -> Callable[[], Model]:
    scratch = copy.deepcopy(state.network)
    return lambda: model_now(state, plan, scratch)


TORCH_RUNS = TrainingFramework(
    start=start_training,
    share=share_between,
    take_step=take_step,
    pack=pack_state,
    unpack=unpack_state,
    follow=_follow,
    weights_to_keep=weights_to_keep,
)
