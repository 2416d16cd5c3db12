"""Training of the network that contours one candidate: patches around things and around false candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.cases.cache import CropReader
from consilium.errors import ConfigurationError, RunError
from consilium.geometry.crop import Box
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.model import Model, ModelDescription, build_model
from consilium.inference.preprocess import AIR, Preprocessing, to_channels
from consilium.losses.dice import dice_loss
from consilium.networks.build import NetworkConfig, build_network, set_output_prior
from consilium.training.config import Budget
from consilium.training.detection import DetectionCase, read_box
from consilium.training.learner import Sitting, learn, start_learner
from consilium.types import Array, Shape

_PLAIN = ("structure", "batch", "false_share", "jitter_mm", "rate", "head_rate", "seed")
DEFAULT_SEGMENTER = NetworkConfig(kind="unet3d", channels=(16, 32, 64), blocks=(1, 2, 2), bf16=True)


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Settings of this training.

    Args:
        structure: What is contoured.
        preprocessing: From image to network; its spacing is that of the contours.
        patch_zyx: Voxels of a patch; it must hold the largest thing with room around it.
        network: Its shape.
        budget: How long.
        batch: Patches per step.
        false_share: Share of patches around what is no such thing.
        jitter_mm: Standard deviation of the patch's middle about the thing's centre.
        rate: Highest learning rate.
        head_rate: The same for the last layer.
        seed: Decides weights, order and changes.

    Raises:
        ConfigurationError: A number that cannot be.
    """

    structure: str
    preprocessing: Preprocessing
    patch_zyx: Shape = (24, 32, 32)
    network: NetworkConfig = DEFAULT_SEGMENTER
    budget: Budget = field(default_factory=lambda: Budget(steps=800))
    batch: int = 4
    false_share: float = 0.3
    jitter_mm: float = 2.5
    rate: float = 2e-3
    head_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, *self.patch_zyx) < 1 or not 0 <= self.false_share < 1:
            raise ConfigurationError(
                f"candidate patches: batch and patch must be at least 1 and false_share in [0, 1); "
                f"got {self.batch}, {self.patch_zyx} and {self.false_share}."
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        record = {key: getattr(self, key) for key in _PLAIN}
        return record | {
            "preprocessing": self.preprocessing.to_json(),
            "patch_zyx": list(self.patch_zyx),
            "network": self.network.to_dict(),
            "budget": self.budget.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "PatchConfig":
        """The inverse of `to_json`."""
        z, y, x = record["patch_zyx"]
        return cls(
            **{key: record[key] for key in _PLAIN},
            preprocessing=Preprocessing.from_json(record["preprocessing"]),
            patch_zyx=(z, y, x),
            network=NetworkConfig.from_dict(record["network"]),
            budget=Budget(**record["budget"]),
        )

    def describe(self) -> ModelDescription:
        """What the trained network needs to be used."""
        return ModelDescription(
            structures=(self.structure,),
            preprocessing=self.preprocessing,
            network=self.network,
            window_zyx=self.patch_zyx,
        )


def train_segmenter(
    cases: Sequence[DetectionCase],
    false_points_zyx: Sequence[Array],
    config: PatchConfig,
    *,
    sitting: Sitting | None = None,
) -> tuple[Model, list[float], bool]:
    """Train on patches.

    Args:
        cases: Those with a mask count; prepared with ``config.preprocessing``.
        false_points_zyx: Per case (K, 3) indices of candidates that are none (hard negatives).
        config: Settings.
        sitting: Progress, Ctrl-C and where the state is kept.

    Returns:
        The model with the moving average of its weights, the loss of each step of this sitting, and whether
        the budget is spent.

    Raises:
        RunError: No case with a mask and a thing.
    """
    places = [
        (case, mask, point) for case in cases if (mask := case.mask) is not None for point in case.centres_zyx
    ]
    false = [
        (case, mask, point)
        for case, points in zip(cases, false_points_zyx, strict=True)
        if (mask := case.mask) is not None
        for point in points
    ]
    if not places:
        raise RunError("candidate patches: needs a case with an outlined thing; found none.")
    device = choose_device()
    shape = NetworkConfig.from_dict({**config.network.to_dict(), "bf16": has_fast_bf16(device)})
    network = build_network(shape, seed=config.seed).to(device)
    set_output_prior(network, [0.03])
    learner = start_learner(network, rate=config.rate, head_rate=config.head_rate)
    known = torch.ones(config.batch, 1, dtype=torch.bool, device=device)

    def compute_loss(step: int) -> Tensor:
        rng = np.random.default_rng((config.seed, step))
        drawn = []
        for _ in range(config.batch):
            source = false if false and rng.random() < config.false_share else places
            drawn.append(_patch(*source[rng.integers(len(source))], config, rng))
        image = torch.stack([one for one, _ in drawn]).to(device)
        reference = torch.stack([two for _, two in drawn]).to(device)
        logits = network(image)[0]
        entropy = functional.binary_cross_entropy_with_logits(logits, reference.float())
        return entropy + dice_loss(logits, reference, known)

    finished = learn(
        learner,
        compute_loss,
        config.budget,
        sitting or Sitting(name="training the contours"),
        rate=config.rate,
        steps_per_epoch=max(1, round(len(places) / config.batch)),
    )
    learner.give_average()
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return build_model(config.describe(), weights, device=device), learner.losses, finished


def _patch(
    case: DetectionCase, mask: CropReader, point: Array, config: PatchConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Image (C, Z, Y, X) and reference (1, Z, Y, X) around a point, a little moved and mirrored."""
    moved = point + rng.normal(size=3) * config.jitter_mm / np.array(case.grid.spacing_zyx_mm)
    box = Box.centred((float(moved[0]), float(moved[1]), float(moved[2])), config.patch_zyx)
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    image = np.flip(read_box(case.image, box, AIR), flips).astype(np.float32)
    image = image * np.float32(rng.uniform(0.95, 1.05)) + np.float32(rng.uniform(-25, 25))
    inside = np.ascontiguousarray(np.flip(read_box(mask, box, 0) != 0, flips))
    channels = to_channels(torch.from_numpy(np.ascontiguousarray(image)), config.preprocessing.windows)
    return channels, torch.from_numpy(inside)[None]
