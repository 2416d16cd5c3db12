"""A trained model as one object and one file: weights, what to do with an image, structures, card, digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from consilium.cases.case import check_name
from consilium.cases.files import write_atomically
from consilium.errors import CheckpointError, ConfigurationError, DatasetError
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.preprocess import Preprocessing
from consilium.networks.build import NetworkConfig, build_network
from consilium.types import Shape

MODEL_FORMAT = "consilium-model"
MODEL_VERSION = 1
MODEL_SUFFIX = ".consilium"
BEST = "best.safetensors"
HEADER = "consilium"
PRIOR_CARD = {"prior": "added"}
"""In the card of a network for adaptation: its output is added to the earlier contours (others' were not)."""


def channels_with_prior(channels: int, structures: int) -> int:
    """Input channels of a network for adaptation; see `consilium.inference.preprocess.Prior`."""
    return 2 * channels + structures


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything about a model that is not a weight.

    Args:
        structures: What each output channel is, in order.
        preprocessing: From image to network.
        network: The network's shape; its outputs are as many as there are structures.
        window_zyx: Shape of the patches it was trained on, in voxels of the network's grid; None if it was
            trained on whole volumes.
        largest_component: Structures of which only the largest connected part is kept.
        card: What a person should know before using it: data, scores, limits; JSON-able.

    Raises:
        ConfigurationError: Structures missing, doubled or not as many as outputs.
    """

    structures: tuple[str, ...]
    preprocessing: Preprocessing
    network: NetworkConfig
    window_zyx: Shape | None = None
    largest_component: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.structures:
            check_name(name, "model structure")
        if not self.structures or len(set(self.structures)) != len(self.structures):
            raise ConfigurationError(
                f"model: structures must be given, each once; got {list(self.structures)}."
            )
        if self.network.out_channels != len(self.structures):
            raise ConfigurationError(
                f"model: the network must have one output per structure; got {self.network.out_channels} "
                f"for {len(self.structures)}."
            )
        own = self.preprocessing.channels
        if self.network.in_channels not in {own, channels_with_prior(own, len(self.structures))}:
            raise ConfigurationError(
                f"model: the network must take one channel per window ({own}), or for adaptation as many "
                f"again and one per structure; got {self.network.in_channels}."
            )
        if not set(self.largest_component) <= set(self.structures):
            raise ConfigurationError("model: largest_component may name only structures of the model.")

    @property
    def takes_prior(self) -> bool:
        """Whether the network is one for adaptation: it also takes an earlier image and its structures."""
        return self.network.in_channels != self.preprocessing.channels

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        return {
            "structures": list(self.structures),
            "preprocessing": self.preprocessing.to_json(),
            "network": self.network.to_dict(),
            "window_zyx": None if self.window_zyx is None else list(self.window_zyx),
            "largest_component": list(self.largest_component),
            "card": dict(self.card),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelDescription":
        """The inverse of `to_json`.

        Raises:
            CheckpointError: A field is missing or cannot be.
        """
        try:
            window = record["window_zyx"]
            return cls(
                structures=tuple(record["structures"]),
                preprocessing=Preprocessing.from_json(record["preprocessing"]),
                network=NetworkConfig.from_dict(record["network"]),
                window_zyx=None if window is None else (int(window[0]), int(window[1]), int(window[2])),
                largest_component=tuple(record["largest_component"]),
                card=dict(record["card"]),
            )
        except (KeyError, TypeError, IndexError, ValueError, ConfigurationError, DatasetError) as error:
            raise CheckpointError(
                f"model: the description must hold a model that can be built; {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network ready for use, in evaluation mode on ``device``."""

    description: ModelDescription
    network: nn.Module
    device: torch.device
    digest: str = ""

    @property
    def structures(self) -> tuple[str, ...]:
        """What each output channel is."""
        return self.description.structures

    @property
    def preprocessing(self) -> Preprocessing:
        """From image to network."""
        return self.description.preprocessing


def build_model(
    description: ModelDescription,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device | None = None,
    digest: str = "",
) -> Model:
    """The network with its weights; bfloat16 only where this machine computes it fast.

    Raises:
        CheckpointError: Weights that are missing, too many or of another shape.
    """
    device = device or choose_device()
    config = description.network
    config = replace(config, bf16=config.bf16 and has_fast_bf16(device))
    network = build_network(config, seed=0)
    load_weights(network, weights)
    return Model(description=description, network=network.to(device).eval(), device=device, digest=digest)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network, by name.

    Raises:
        CheckpointError: Weights that are missing, too many or of another shape.
    """
    expected = network.state_dict()
    if set(expected) != set(weights):
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        raise CheckpointError(
            f"model: weights must be those of its network; missing {missing[:3]}, not known {extra[:3]}."
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"model: {name} must have shape {tuple(expected[name].shape)}; found {tuple(tensor.shape)}."
            )
    network.load_state_dict(dict(weights))


def save_model(path: Path, description: ModelDescription, weights: Mapping[str, Tensor]) -> str:
    """Write a model file in one step; returns its digest."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    text = canonical_json(description.to_json())
    digest = compute_digest(text, tensors)
    header = {"format": MODEL_FORMAT, "version": MODEL_VERSION, "description": text, "digest": digest}
    write_tensors(path, tensors, header)
    return digest


def read_model_file(path: Path) -> tuple[ModelDescription, dict[str, Tensor], str]:
    """Description, weights and digest of a model file.

    Raises:
        CheckpointError: No model file, of another version, or its content does not have its digest.
    """
    tensors, header = read_tensors(path)
    found = (header.get("format"), header.get("version"))
    if found != (MODEL_FORMAT, MODEL_VERSION):
        raise CheckpointError(
            f"{path.name}: must be of format {MODEL_FORMAT!r} version {MODEL_VERSION}; found {found[0]!r} "
            f"version {found[1]!r}. Pack the run again with this version of consilium."
        )
    text = str(header.get("description", ""))
    digest = compute_digest(text, tensors)
    if digest != header.get("digest"):
        raise CheckpointError(
            f"{path.name}: the content must have the digest that the file states; it has {digest[:12]}…. "
            "The file is damaged or was changed: get it again from where it was packed."
        )
    return ModelDescription.from_json(parse_json(text, path.name)), tensors, digest


def load_model(path: Path, *, device: torch.device | None = None) -> Model:
    """The model of a run's folder (its best weights) or of a model file.

    Raises:
        CheckpointError: See `read_model_file`; or a run without validated weights.
    """
    if path.is_dir():
        if not (path / BEST).is_file():
            raise CheckpointError(
                f"{path.name}: must be a run's folder with {BEST}; there is none. Train it first, or wait "
                "for its first validation."
            )
        path = path / BEST
    description, weights, digest = read_model_file(path)
    return build_model(description, weights, device=device, digest=digest)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """A safetensors file with ``header`` as its only metadata, in one step; same content, same bytes."""
    # safetensors writes several metadata entries in random order, so there is only one.
    # And it refuses tensors that share memory: a network may hold one module under two names.
    apart = {name: tensor.clone() for name, tensor in tensors.items()}
    write_atomically(path, save(apart, {HEADER: canonical_json(header)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor and the header of a file that `write_tensors` wrote; an empty header where it has none.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        return tensors, parse_json(metadata.get(HEADER, "{}"), path.name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name}: must exist; it is missing.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name}: must be a whole safetensors file; it cannot be read ({error}). Get it again."
        ) from error


def compute_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a text and the name, kind, shape and bytes of every tensor."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parse_json(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: It is none.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: its description must be JSON; it cannot be read.") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: its description must be a JSON object.")
    return record


def canonical_json(record: Mapping[str, Any]) -> str:
    """JSON that is the same text for the same record."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
