"""A training in TensorFlow between two steps, and the step; number for number that of `training.state`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import torch
from torch import nn

from consilium.errors import RunError
from consilium.networks.config import NetworkConfig
from consilium.tensorflow.blocks import Tensor
from consilium.tensorflow.iunet import head_strides
from consilium.tensorflow.losses import MultiScaleLoss
from consilium.tensorflow.network import Network
from consilium.tensorflow.optimiser import AdamW, Rates, Sgd, clip_by_norm
from consilium.tensorflow.workers import TensorflowWorkers
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.overfitting import OverfittingWatch
from consilium.training.state import FIRST_AVERAGE, GradientChange, hash_seed
from consilium.types import Array

LOSS_PREFIX = "loss."


@dataclass
class TensorflowState:
    """A training between two steps.

    Attributes:
        network: The weights that are trained.
        loss: With its own weights where they are learned.
        optimiser: AdamW, or plain descent for comparisons.
        average: Moving average of the weights by name; empty where none is kept.
        step: Steps done.
        elapsed_s: Time spent on them, validation included.
        watch: Over-fitting watch.
        best_dice: Highest validation Dice so far; negative before the first.
        best_step: Where it was reached.
        recent: Per structure [sum of Dice, number] over the steps since they were last taken.
        recent_loss: [sum, number] of the loss over the same steps.
        workers: The processes that take each step together; None: this one alone.
    """

    network: Network
    loss: MultiScaleLoss
    optimiser: AdamW | Sgd
    average: dict[str, tf.Variable]
    step: int = 0
    elapsed_s: float = 0.0
    watch: OverfittingWatch = field(default_factory=OverfittingWatch)
    best_dice: float = -1.0
    best_step: int = 0
    recent: list[list[float]] = field(default_factory=list)
    recent_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    workers: TensorflowWorkers | None = None

    def __post_init__(self) -> None:
        # One trace each: the shapes of images differ from step to step.
        self._differentiate = tf.function(self.differentiate, reduce_retracing=True, autograph=False)
        self._apply = tf.function(self.optimiser.apply, autograph=False)
        self._follow = tf.function(self._update_average, autograph=False)

    @property
    def device(self) -> torch.device:
        """Where torch's part of the work runs: rules that change gradients."""
        return torch.device("cpu")

    def trained(self) -> dict[str, tf.Variable]:
        """Every trained parameter by name: the network's, then the loss's."""
        return trained_parameters(self.network, self.loss)

    def differentiate(
        self, image: Tensor, reference: Tensor, known: Tensor, seed: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, gradients by name, and per structure the voxels (S, 3): in both, predicted, wanted.

        A parameter that the loss does not depend on has no gradient. With several workers loss and gradients
        are those of their batches together.
        """
        if self.workers is None:
            return self._differentiate_own(image, reference, known, seed)
        found: tuple[Tensor, dict[str, Tensor], Tensor] = self.workers.run(
            self._differentiate_own, (image, reference, known, seed)
        )
        return found

    def _differentiate_own(
        self, image: Tensor, reference: Tensor, known: Tensor, seed: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        workers = self.workers
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            parameters = self.trained()
            tape.watch(list(parameters.values()))
            logits = self.network(image, training=True, seed=seed)
            loss = self.loss(logits, reference, known, join=None if workers is None else workers.join)
        gradients = tape.gradient(loss, parameters)
        found = {name: tf.convert_to_tensor(flow) for name, flow in gradients.items() if flow is not None}
        if workers is not None:
            # The loss's own weights see the joined sums: their gradients are whole at every worker.
            parts = {name: flow for name, flow in found.items() if not name.startswith(LOSS_PREFIX)}
            found |= workers.add(parts)
        return loss, found, _count_voxels(logits[0], reference, known)

    def take_step(
        self,
        batch: Batch,
        config: TrainingConfig,
        *,
        rate: float,
        change_gradients: GradientChange | None = None,
    ) -> float:
        """One step on one batch; returns the loss.

        Raises:
            RunError: The loss or the gradient is no finite number.
        """
        parts = (batch.image, batch.reference, batch.known)
        inputs = [tf.convert_to_tensor(part.numpy()) for part in parts]
        found, gradients, counts = self._differentiate(*inputs, step_seed(config.seed, self.step))
        if change_gradients is not None:
            gradients = self._change(gradients, change_gradients)
        loss = float(found.numpy())
        self.move(gradients, config, rate=rate, loss=loss, case_ids=batch.case_ids)
        note_dice(self.recent, counts.numpy(), batch.known.numpy())
        return loss

    def move(
        self,
        gradients: Mapping[str, Tensor],
        config: TrainingConfig,
        *,
        rate: float,
        loss: float,
        case_ids: tuple[str, ...],
    ) -> None:
        """Change the weights by the gradients of a step whose loss was ``loss``.

        Raises:
            RunError: The loss or the gradient is no finite number.
        """
        clipped, norm = clip_by_norm(gradients, config.clip_norm)
        if not math.isfinite(loss) or not math.isfinite(float(norm.numpy())):
            raise RunError(
                f"step {self.step}, case {', '.join(case_ids)}: loss and gradient must be finite; found "
                f"{loss} and {float(norm.numpy())}. Lower the rate from {rate:g}, or look at that case's "
                "image."
            )
        self._apply(clipped, tf.constant(rate, tf.float64))
        self.step += 1
        self.recent_loss = [self.recent_loss[0] + loss, self.recent_loss[1] + 1]
        if self.average:
            steps = max(1.0, min(float(self.step), max(FIRST_AVERAGE, config.average * self.step)))
            self._follow(tf.constant(1.0 / steps, tf.float64))

    def weights_to_keep(self) -> dict[str, Array]:
        """The weights that are validated and kept: the average, or the trained ones where none is kept."""
        kept = self.average or self.network.by_name
        return {name: np.array(value.numpy()) for name, value in kept.items()}

    def _change(self, gradients: Mapping[str, Tensor], change: GradientChange) -> dict[str, Tensor]:
        """What a rule written for torch makes of the gradients."""
        named = []
        for name, flow in gradients.items():
            parameter = nn.Parameter(torch.from_numpy(np.array(self.trained()[name].numpy())))
            parameter.grad = torch.from_numpy(np.array(flow.numpy()))
            named.append((name, parameter))
        change(iter(named))
        return {name: tf.convert_to_tensor(p.grad.numpy()) for name, p in named if p.grad is not None}

    def _update_average(self, share: Tensor) -> None:
        for name, target in self.average.items():
            part, value = tf.cast(share, target.dtype), self.network.by_name[name]
            change = value - target
            # From the nearer end, as torch does: a share of 1 gives exactly the new value.
            target.assign(tf.where(part < 0.5, target + part * change, value - (1.0 - part) * change))


def start_state(
    network_config: NetworkConfig,
    parameters: Mapping[str, Array],
    config: TrainingConfig,
    *,
    structures: int,
    plain_descent: bool = False,
) -> TensorflowState:
    """The state before the first step.

    Args:
        network_config: Of the network.
        parameters: Its first weights by canonical name; their kind of number is that of the training.
        config: Of the training.
        structures: Number of structures.
        plain_descent: Plain gradient descent instead of AdamW, for comparisons.
    """
    network = Network(network_config, parameters)
    weights = config.scale_weights or (1.0,)
    strides = head_strides(network_config)
    loss = MultiScaleLoss(weights, strides, learned=config.learned_weights, dtype=network.dtype)
    rates = Rates(decay=config.weight_decay, head_factor=config.head_rate / config.rate)
    optimiser = (Sgd if plain_descent else AdamW)(trained_parameters(network, loss), rates)
    average = {name: tf.Variable(value) for name, value in network.by_name.items()} if config.average else {}
    return TensorflowState(
        network=network,
        loss=loss,
        optimiser=optimiser,
        average=average,
        recent=[[0.0, 0.0] for _ in range(structures)],
    )


def trained_parameters(network: Network, loss: MultiScaleLoss) -> dict[str, tf.Variable]:
    """The network's parameters by name, then the loss's."""
    own = {} if loss.log_variance is None else {f"{LOSS_PREFIX}log_variance": loss.log_variance}
    return {**network.by_name, **own}


def step_seed(seed: int, step: int) -> Tensor:
    """The (2,) seed of a step's dropout."""
    mixed = hash_seed(seed, step)
    return tf.constant([mixed & 0x7FFFFFFF, (mixed >> 31) & 0x7FFFFFFF], tf.int32)


def _count_voxels(logits: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    axes = (0, *range(2, len(logits.shape)))
    told = tf.reshape(known, tf.concat([tf.shape(known), [1] * (len(axes) - 1)], 0))
    ours, theirs = tf.logical_and(logits > 0, told), tf.logical_and(tf.cast(reference, tf.bool), told)
    masks: tuple[Any, ...] = (tf.logical_and(ours, theirs), ours, theirs)
    return tf.stack([tf.reduce_sum(tf.cast(mask, tf.int64), axes) for mask in masks], -1)


def note_dice(recent: list[list[float]], counts: Array, known: Array) -> None:
    """Add a batch's Dice of every structure that it holds to ``recent``."""
    for s, (both, ours, theirs) in enumerate(counts.tolist()):
        if known[:, s].any() and theirs:
            recent[s][0] += 2 * both / (ours + theirs)
            recent[s][1] += 1
