"""One training step by torch and by TensorFlow from the same weights on the same batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from consilium.inference.preprocess import Preprocessing
from consilium.networks.config import NetworkConfig
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.plan import Plan
from consilium.training.state import TrainingState, start_training, take_step
from consilium.types import Array
from tests.networks.small import build_shaken, draw_image

SMALL: dict[str, Any] = {"channels": (4, 16, 32), "out_channels": 3, "heads": 3, "blocks": (1, 2, 1)}


def make_batch_of(shape: tuple[int, ...], structures: int, *, channels: int = 1, seed: int = 3) -> Batch:
    """Two samples; the second's last structure is unknown, its first absent."""
    rng = np.random.default_rng(seed)
    reference = rng.random((2, structures, *shape)) < 0.3
    reference[1, 0] = False
    known = np.ones((2, structures), bool)
    known[1, -1] = False
    return Batch(
        image=draw_image(2, channels, *shape, dtype=torch.float32, seed=seed),
        reference=torch.from_numpy(reference),
        known=torch.from_numpy(known),
        case_ids=("one", "two"),
    )


@dataclass
class Pair:
    """The same training in both frameworks."""

    torch_state: TrainingState
    tensorflow_state: Any
    config: TrainingConfig

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """Both losses."""
        return self.torch_step(batch, rate), self.tensorflow_state.take_step(batch, self.config, rate=rate)

    def torch_step(self, batch: Batch, rate: float) -> float:
        """The loss of torch's step alone."""
        return take_step(self.torch_state, batch, self.config, rate=rate)

    def largest_difference(self, told: Mapping[str, Array] | None = None) -> float:
        """Over all parameters of network and average; of the network where ``told`` says."""
        theirs = self.tensorflow_state.network.get_parameters()
        ours = {n: v.detach().numpy() for n, v in self.torch_state.network.state_dict().items()}
        if told is not None:
            return max(float(np.abs((ours[n] - theirs[n])[mask]).max(initial=0)) for n, mask in told.items())
        kept = self.tensorflow_state.weights_to_keep()
        average = {n: v.numpy() for n, v in self.torch_state.average.items()}
        pairs = [(ours, theirs)] + ([(average, kept)] if average else [])
        return max(float(np.abs(a[n] - b[n]).max()) for a, b in pairs for n in a)


def start_pair(
    network: NetworkConfig, config: TrainingConfig, dtype: torch.dtype, *, plain_descent: bool = False
) -> Pair:
    """Both states from the same shaken weights."""
    state = start_torch(network, config, dtype, plain_descent=plain_descent)
    return Pair(state, start_tensorflow(network, config, dtype, plain_descent=plain_descent), config)


def start_torch(
    network: NetworkConfig, config: TrainingConfig, dtype: torch.dtype, *, plain_descent: bool = False
) -> TrainingState:
    """Torch's state with shaken weights."""
    structures = tuple(f"S{n}" for n in range(network.out_channels))
    state = start_training(
        _plan(network, structures),
        config,
        [0.1] * len(structures),
        device=torch.device("cpu"),
        network=build_shaken(network, dtype),
    )
    state.loss.to(dtype)
    if plain_descent:
        groups = [
            {k: g[k] for k in ("params", "weight_decay", "factor")} for g in state.optimiser.param_groups
        ]
        state.optimiser = torch.optim.SGD(groups, lr=config.rate)  # type: ignore[assignment]
    return state


def start_tensorflow(
    network: NetworkConfig, config: TrainingConfig, dtype: torch.dtype, *, plain_descent: bool = False
) -> Any:
    """TensorFlow's with the same weights."""
    from consilium.tensorflow.state import start_state

    shaken = build_shaken(network, dtype).named_parameters()
    parameters: dict[str, Array] = {name: value.detach().numpy().copy() for name, value in shaken}
    return start_state(
        network, parameters, config, structures=network.out_channels, plain_descent=plain_descent
    )


def _plan(network: NetworkConfig, structures: tuple[str, ...]) -> Plan:
    return Plan(
        structures=structures,
        preprocessing=Preprocessing(spacing_zyx_mm=(1.0, 1.0, 1.0), windows=((-100.0, 100.0),)),
        network=network,
        patch_zyx=(8, 8, 8),
        batch=2,
        mirror=None,
        typical_zyx=(8, 8, 8),
        largest_zyx=(8, 8, 8),
        predicted_bytes=0,
        memory_bytes=0,
    )
