"""The plan: what the data and the memory at hand decide about a training, with the reasons in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from consilium.errors import CheckpointError, ConfigurationError
from consilium.inference.model import PRIOR_CARD, ModelDescription
from consilium.inference.preprocess import Preprocessing
from consilium.networks.config import NetworkConfig
from consilium.types import Shape

CROP_SHARE = 0.75
"""Part of a training on whole volumes that sees crops, where the plan has some."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a training that is decided before it starts.

    Args:
        structures: What is learnt, in order.
        preprocessing: From image to network.
        network: The network's shape, bfloat16 included.
        patch_zyx: Voxels of a patch; None: whole volumes, one per step.
        batch: Samples per step.
        crop_zyx: For whole volumes: the first part of the training sees crops of this shape around
            structures, many cheap steps, before whole volumes follow; None: whole volumes all along.
        mirror: Which structure each one becomes in a mirrored image; None: nothing is mirrored.
        typical_zyx: Median shape of the volumes on the network's grid.
        largest_zyx: Shape that holds every volume on the network's grid.
        predicted_bytes: Predicted peak of a training step above what the process holds anyway.
        memory_bytes: What was at hand when the plan was made.
        reasons: Why, in sentences.
    """

    structures: tuple[str, ...]
    preprocessing: Preprocessing
    network: NetworkConfig
    patch_zyx: Shape | None
    batch: int
    mirror: tuple[int, ...] | None
    typical_zyx: Shape
    largest_zyx: Shape
    predicted_bytes: int
    memory_bytes: int
    reasons: tuple[str, ...] = ()
    crop_zyx: Shape | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.patch_zyx is None and self.batch != 1):
            raise ConfigurationError(
                f"plan: batch must be at least 1, and 1 for whole volumes; got {self.batch}."
            )

    @property
    def takes_prior(self) -> bool:
        """Whether the network is one for adaptation."""
        return self.network.in_channels != self.preprocessing.channels

    def output_start(self, prior: Sequence[float]) -> list[float]:
        """Where outputs start: at each structure's share of voxels, or undecided on top of an earlier day."""
        return [0.5] * len(self.structures) if self.takes_prior else list(prior)

    def network_for(self, *, bf16: bool) -> NetworkConfig:
        """The network as this machine should compute it."""
        return replace(self.network, bf16=bf16)

    def describe_model(self, card: Mapping[str, Any] | None = None) -> ModelDescription:
        """What a model trained by this plan is."""
        return ModelDescription(
            structures=self.structures,
            preprocessing=self.preprocessing,
            network=self.network,
            window_zyx=self.patch_zyx,
            card=dict(card or {}) | (PRIOR_CARD if self.takes_prior else {}),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        record = dict(vars(self))
        record["preprocessing"] = self.preprocessing.to_json()
        record["network"] = self.network.to_dict()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`.

        Raises:
            CheckpointError: A field is missing or cannot be.
        """
        try:
            values: dict[str, Any] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in record.items()
            }
            values["preprocessing"] = Preprocessing.from_json(record["preprocessing"])
            values["network"] = NetworkConfig.from_dict(record["network"])
            return cls(**values)
        except (KeyError, TypeError, ConfigurationError) as error:
            raise CheckpointError(f"plan: a field is missing or cannot be: {error}") from error
