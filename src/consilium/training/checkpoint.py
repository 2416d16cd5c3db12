"""The state of a training on disk: exact, written in one step, refused when damaged."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from consilium.errors import CheckpointError
from consilium.inference.model import compute_digest, load_weights, parse_json, read_tensors, write_tensors
from consilium.training.overfitting import OverfittingWatch
from consilium.training.state import TrainingState

CHECKPOINT_FORMAT = "consilium-checkpoint"
CHECKPOINT_VERSION = 1
LAST = "last.safetensors"

T = TypeVar("T")


def pack_state(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of a state, by name; the same names whatever the framework."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    tensors |= {f"loss.{name}": value for name, value in state.loss.state_dict().items()}
    return tensors | optimiser_tensors(state.named_parameters(), state.optimiser)


def unpack_state(state: TrainingState, tensors: dict[str, Tensor]) -> None:
    """Put what `pack_state` gave into a state."""
    load_weights(state.network, part_of(tensors, "network."))
    state.loss.load_state_dict(part_of(tensors, "loss."))
    for name, value in part_of(tensors, "average.").items():
        state.average[name].copy_(value)
    load_optimiser(state.named_parameters(), state.optimiser, part_of(tensors, "optimiser."))


def save_checkpoint(
    path: Path, state: Any, *, fingerprint: str, pack: Callable[[Any], dict[str, Tensor]] = pack_state
) -> None:
    """Write a state.

    Args:
        path: Of the file.
        state: Between two steps.
        fingerprint: Of the plan, the split and the seed: a state goes on only where they are the same.
        pack: As `pack_state`, of the state's framework.
    """
    scalars = json.dumps(
        {
            "step": state.step,
            "elapsed_s": state.elapsed_s,
            "watch": state.watch.to_json(),
            "best_dice": state.best_dice,
            "best_step": state.best_step,
            "recent": state.recent,
            "recent_loss": state.recent_loss,
        }
    )
    write_checkpoint(path, pack(state), scalars, fingerprint=fingerprint)


def load_checkpoint(
    path: Path,
    state: Any,
    *,
    fingerprint: str,
    unpack: Callable[[Any, dict[str, Tensor]], None] = unpack_state,
) -> None:
    """Put a saved state into ``state``, which was built from the same plan, in either framework.

    Raises:
        CheckpointError: Damaged, of another version, or of another plan, split or seed.
    """
    tensors, record = read_checkpoint(path, fingerprint=fingerprint)
    unpack(state, tensors)
    state.step, state.elapsed_s = int(record["step"]), float(record["elapsed_s"])
    state.watch = OverfittingWatch.from_json(record["watch"])
    state.best_dice, state.best_step = float(record["best_dice"]), int(record["best_step"])
    state.recent, state.recent_loss = record["recent"], record["recent_loss"]


def write_checkpoint(path: Path, tensors: dict[str, Tensor], scalars: str, *, fingerprint: str) -> None:
    """Write tensors and a JSON text in one step, with the digest of both."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": CHECKPOINT_FORMAT,
        "version": CHECKPOINT_VERSION,
        "fingerprint": fingerprint,
        "state": scalars,
        "digest": compute_digest(scalars, tensors),
    }
    write_tensors(path, tensors, header)


def read_checkpoint(path: Path, *, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        CheckpointError: Damaged, of another version, or of another plan, split or seed.
    """
    tensors, header = read_tensors(path)
    found = (header.get("format"), header.get("version"))
    if found != (CHECKPOINT_FORMAT, CHECKPOINT_VERSION):
        raise CheckpointError(
            f"{path.name}: must be a {CHECKPOINT_FORMAT!r} of version {CHECKPOINT_VERSION}; found {found}."
        )
    if header.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path.name}: must come from the same plan, split and seed to go on from; it does not. "
            "Train into a new folder."
        )
    scalars = str(header.get("state", ""))
    if compute_digest(scalars, tensors) != header.get("digest"):
        raise CheckpointError(
            f"{path.name}: the content must have the digest that the file states; it has not. The file is "
            "damaged: train again into a new folder."
        )
    return tensors, parse_json(scalars, path.name)


def part_of(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors whose name begins so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(
    parameters: Iterable[tuple[str, nn.Parameter]], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """``optimiser.<parameter>.<slot>``; slots are AdamW's step and two moments."""
    found = {}
    for name, parameter in parameters:
        for slot, value in optimiser.state.get(parameter, {}).items():
            found[f"optimiser.{name}.{slot}"] = torch.as_tensor(value)
    return found


def load_optimiser(
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimiser: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
) -> None:
    """The inverse of `optimiser_tensors`, without the beginning of the names."""
    # A fused optimiser keeps its step beside the weights, any other one in the processor's memory.
    fused = {p for group in optimiser.param_groups if group.get("fused") for p in group["params"]}
    for name, parameter in parameters:
        prefix = f"{name}."
        slots = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }
        if slots:
            optimiser.state[parameter] = {
                slot: value.clone()
                if slot == "step" and parameter not in fused
                else value.to(parameter.device, copy=True)
                for slot, value in slots.items()
            }
