"""Training of the network that contours one candidate: patches around things and around false candidates."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.errors import ConfigurationError, RunError
from consilium.geometry.crop import Box, crop_or_pad
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.model import Model, ModelDescription, build_model
from consilium.inference.preprocess import AIR, Preprocessing, to_channels
from consilium.losses.dice import dice_loss
from consilium.networks.build import NetworkConfig, build_network, set_output_prior
from consilium.training.detection import Averaging, DetectionCase, set_rate, step_once
from consilium.types import Array, Mask, Progress, Shape, no_progress

DEFAULT_SEGMENTER = NetworkConfig(kind="unet3d", channels=(16, 32, 64), bf16=True)


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Settings of this training.

    Args:
        structure: What is contoured.
        preprocessing: From image to network; its spacing is that of the contours.
        patch_zyx: Voxels of a patch; it must hold the largest thing with room around it.
        network: Its shape.
        steps: How many.
        minutes: Ends the training earlier; None: never.
        batch: Patches per step.
        false_share: Share of patches around what is no such thing.
        jitter_mm: Standard deviation of the patch's middle about the thing's centre.
        rate: Highest learning rate.
        seed: Decides weights, order and changes.

    Raises:
        ConfigurationError: A number that cannot be.
    """

    structure: str
    preprocessing: Preprocessing
    patch_zyx: Shape = (24, 32, 32)
    network: NetworkConfig = DEFAULT_SEGMENTER
    steps: int = 800
    minutes: float | None = None
    batch: int = 4
    false_share: float = 0.3
    jitter_mm: float = 2.5
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, *self.patch_zyx) < 1 or not 0 <= self.false_share < 1:
            raise ConfigurationError(
                f"candidate patches: steps, batch and patch must be at least 1 and false_share in [0, 1); "
                f"got {self.steps}, {self.batch}, {self.patch_zyx} and {self.false_share}."
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
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Model, list[float]]:
    """Train on patches.

    Args:
        cases: Those with a mask count; prepared with ``config.preprocessing``.
        false_points_zyx: Per case (K, 3) indices of candidates that are none (hard negatives).
        config: Settings.
        progress: Told after each step.
        should_stop: Asked before each step.

    Returns:
        The model with the moving average of its weights, and the loss of each step.

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
    average = Averaging(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=1e-2)
    known = torch.ones(config.batch, 1, dtype=torch.bool, device=device)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(config.steps):
        share = step / config.steps
        if config.minutes is not None:
            share = max(share, (time.monotonic() - started) / (60 * config.minutes))
        if share >= 1 or should_stop():
            break
        rng = np.random.default_rng((config.seed, step))
        drawn = []
        for _ in range(config.batch):
            source = false if false and rng.random() < config.false_share else places
            drawn.append(_patch(*source[rng.integers(len(source))], config, rng))
        image = torch.stack([one for one, _ in drawn]).to(device)
        reference = torch.stack([two for _, two in drawn]).to(device)
        set_rate(optimiser, config.rate, share)
        logits = network(image)[0]
        entropy = functional.binary_cross_entropy_with_logits(logits, reference.float())
        losses.append(step_once(network, optimiser, entropy + dice_loss(logits, reference, known)))
        average.take(network, step)
        progress("training the contours", int(share * 1000), 1000)
    average.give(network)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return build_model(config.describe(), weights, device=device), losses


def _patch(
    case: DetectionCase, mask: Mask, point: Array, config: PatchConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Image (C, Z, Y, X) and reference (1, Z, Y, X) around a point, a little moved and mirrored."""
    moved = point + rng.normal(size=3) * config.jitter_mm / np.array(case.grid.spacing_zyx_mm)
    box = Box.centred((float(moved[0]), float(moved[1]), float(moved[2])), config.patch_zyx)
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    image = np.flip(crop_or_pad(case.image, box, AIR), flips).astype(np.float32)
    image = image * np.float32(rng.uniform(0.95, 1.05)) + np.float32(rng.uniform(-25, 25))
    inside = np.ascontiguousarray(np.flip(crop_or_pad(mask, box, 0), flips))
    channels = to_channels(torch.from_numpy(np.ascontiguousarray(image)), config.preprocessing.windows)
    return channels, torch.from_numpy(inside)[None]
