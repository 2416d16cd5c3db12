"""Training of a detector on whole scans, from the dataset's instance records."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, RunError
from consilium.geometry.crop import Box, crop_or_pad
from consilium.geometry.volume import Grid
from consilium.inference.candidates import DetectorDescription, image_to_output
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.preprocess import AIR, Preprocessing, prepare_image, prepare_mask, to_channels
from consilium.losses.detection import DetectionLoss, DetectionTargets, detection_loss, make_targets
from consilium.networks.detector import STRIDE, Detector, DetectorConfig, build_detector, with_bf16
from consilium.types import Array, Mask, Progress, Shape, Triple, no_progress

LUNG_WINDOW = ((-1000.0, 400.0),)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Settings of a detector's training.

    Args:
        structure: What to find; cases must have `Instance` records of it, or say that it is absent.
        preprocessing: From image to network.
        ignored: Structures whose instances are neither to be found nor wrong.
        network: The detector's shape.
        loss: Its weights.
        steps: How many.
        minutes: Ends the training earlier; None: never.
        crop_zyx: Part of a scan that one sample shows, in voxels, two of three times with a thing in
            it; None: the whole scan.
        batch: Samples per step; above 1 only with ``crop_zyx``.
        rate: Highest learning rate.
        seed: Decides weights, order and changes.

    Raises:
        ConfigurationError: A number that cannot be.
    """

    structure: str
    preprocessing: Preprocessing
    ignored: tuple[str, ...] = ()
    network: DetectorConfig = field(default_factory=DetectorConfig)
    loss: DetectionLoss = field(default_factory=DetectionLoss)
    steps: int = 1000
    minutes: float | None = None
    crop_zyx: Shape | None = None
    batch: int = 1
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate < 1 or (self.minutes is not None and self.minutes <= 0):
            raise ConfigurationError(
                f"detection: steps must be at least 1, the rate in (0, 1), minutes positive; got "
                f"{self.steps}, {self.rate} and {self.minutes}."
            )
        if self.batch < 1 or (self.batch > 1 and self.crop_zyx is None):
            raise ConfigurationError(
                f"detection: batch must be 1, or more with crop_zyx, for whole scans differ in size; got "
                f"{self.batch}."
            )

    def describe(self) -> DetectorDescription:
        """What the trained detector needs to be used."""
        return DetectorDescription(
            structure=self.structure, preprocessing=self.preprocessing, network=self.network
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionCase:
    """One scan on the network's grid.

    Args:
        case_id: Pseudonym.
        image: (Z, Y, X) int16.
        grid: Of ``image``.
        centres_zyx: (N, 3) fractional indices of the things to be found.
        diameters_mm: (N,) > 0.
        ignored_zyx: (M, 3) places about which nothing is learnt.
        mask: (Z, Y, X) bool: inside any of the things; None if nobody outlined them.
    """

    case_id: str
    image: Array
    grid: Grid
    centres_zyx: Array
    diameters_mm: Array
    ignored_zyx: Array
    mask: Mask | None


def load_detection_cases(
    dataset: Dataset,
    case_ids: Sequence[str],
    config: DetectionConfig,
    *,
    reader: str | None = None,
    progress: Progress = no_progress,
) -> list[DetectionCase]:
    """Cases as a detector's training reads them.

    Instances without a known diameter (negative) are ignored, like those of ``config.ignored``.

    Args:
        dataset: To read from.
        case_ids: Which cases.
        config: Structure and preprocessing.
        reader: Whose outlines make the mask; None: see `Case.annotation`.
        progress: Told after each case.
    """
    loaded = []
    for done, case_id in enumerate(case_ids):
        case = dataset.case(case_id)
        prepared = prepare_image(dataset.load_image(case), config.preprocessing)
        wanted = [i for i in case.instances if i.structure == config.structure and i.diameter_mm > 0]
        skipped = [
            i
            for i in case.instances
            if i.structure in config.ignored or (i.structure == config.structure and i.diameter_mm <= 0)
        ]
        annotation = case.annotation(config.structure, reader)
        mask = None
        if annotation is not None and annotation.state != "unknown":
            whole = dataset.load_mask(case, config.structure, annotation.reader)
            mask = prepare_mask(whole, case.image.grid, prepared.grid)
        to_index = prepared.grid.affine.to_indices
        loaded.append(
            DetectionCase(
                case_id=case_id,
                image=prepared.array,
                grid=prepared.grid,
                centres_zyx=to_index(np.array([i.centre_lps_mm for i in wanted]).reshape(-1, 3)),
                diameters_mm=np.array([i.diameter_mm for i in wanted]),
                ignored_zyx=to_index(np.array([i.centre_lps_mm for i in skipped]).reshape(-1, 3)),
                mask=mask,
            )
        )
        progress("preparing cases", done + 1, len(case_ids))
    return loaded


def train_detector(
    cases: Sequence[DetectionCase],
    config: DetectionConfig,
    *,
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Detector, list[float]]:
    """Train on whole scans (or large parts of them), one per step.

    Returns:
        The detector in evaluation mode with the moving average of its weights, and the loss of each step.

    Raises:
        RunError: No case, or a loss that is no number.
    """
    if not cases:
        raise RunError("detection: needs at least one training case; found none. Import more patients.")
    device = choose_device()
    shape = with_bf16(config.network, has_fast_bf16(device))
    detector = build_detector(shape, seed=config.seed).to(device)
    average = Averaging(detector)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=config.rate, weight_decay=1e-2)
    losses: list[float] = []
    started = time.monotonic()
    order: list[int] = []
    for step in range(config.steps):
        share = step / config.steps
        if config.minutes is not None:
            share = max(share, (time.monotonic() - started) / (60 * config.minutes))
        if share >= 1 or should_stop():
            break
        set_rate(optimiser, config.rate, share)
        images, targets = [], []
        for sample in range(config.batch):
            rng = np.random.default_rng((config.seed, step, sample))
            order = order or rng.permutation(len(cases)).tolist()
            image, target = make_sample(cases[order.pop()], config, rng)
            images.append(image)
            targets.append(_to(target, device))
        loss = detection_loss(detector(torch.cat(images).to(device)), targets, config.loss)
        losses.append(step_once(detector, optimiser, loss))
        average.take(detector, step)
        progress("training the detector", int(share * 1000), 1000)
    average.give(detector)
    return detector.eval(), losses


def make_sample(
    case: DetectionCase, config: DetectionConfig, rng: np.random.Generator
) -> tuple[Tensor, DetectionTargets]:
    """One randomly moved and mirrored view of a scan (1, C, Z, Y, X), and what is to be found in it."""
    start = np.array([int(rng.integers(-STRIDE + 1, STRIDE)) for _ in range(3)])
    size = np.array(case.image.shape)
    if config.crop_zyx is not None:
        size = np.array(config.crop_zyx)
        start = start + _choose_corner(case, size, rng)
    box = Box(tuple(start), tuple(start + size))
    image = crop_or_pad(case.image, box, AIR)
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    gain, offset = rng.uniform(0.95, 1.05), rng.uniform(-25, 25)
    channels = np.ascontiguousarray(np.flip(image, flips)).astype(np.float32) * gain + offset
    tensor = to_channels(torch.from_numpy(channels.astype(np.float32)), config.preprocessing.windows)[None]

    def seen(index: Array) -> list[Triple]:
        moved = index - start
        for axis in flips:
            moved[:, axis] = size[axis] - 1 - moved[:, axis]
        return [(float(z), float(y), float(x)) for z, y, x in image_to_output(moved)]

    output = tuple(-(-int(n) // STRIDE) for n in size)
    sz, sy, sx = case.grid.spacing_zyx_mm
    targets = make_targets(
        (output[0], output[1], output[2]),
        seen(case.centres_zyx),
        case.diameters_mm.tolist(),
        voxel_mm=(sz * STRIDE, sy * STRIDE, sx * STRIDE),
        ignored_zyx=seen(case.ignored_zyx),
    )
    return tensor, targets


class Averaging:
    """A moving average of a network's weights, shorter while the training is young."""

    def __init__(self, network: torch.nn.Module, decay: float = 0.99) -> None:
        self._decay = decay
        self._kept = [p.detach().clone() for p in network.parameters()]

    def take(self, network: torch.nn.Module, step: int) -> None:
        """After each step."""
        decay = min(self._decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, now in zip(self._kept, network.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)

    def give(self, network: torch.nn.Module) -> None:
        """Put the average into the network."""
        with torch.no_grad():
            for kept, now in zip(self._kept, network.parameters(), strict=True):
                now.copy_(kept)


def set_rate(optimiser: torch.optim.Optimizer, highest: float, share: float) -> None:
    """Rise over the first twentieth of a training, then fall as a cosine to nothing."""
    rise = 0.05
    factor = share / rise if share < rise else 0.5 * (1 + np.cos(np.pi * (share - rise) / (1 - rise)))
    for group in optimiser.param_groups:
        group["lr"] = highest * max(float(factor), 1e-3)


def step_once(network: torch.nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
    """One step down a loss; returns the loss.

    Raises:
        RunError: The loss is no number.
    """
    value = float(loss.detach())
    if not np.isfinite(value):
        raise RunError(f"training: the loss must be a number; it became {value}. Lower the rate.")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimiser.step()
    return value


def _choose_corner(case: DetectionCase, size: Array, rng: np.random.Generator) -> Array:
    """Where a part of a scan begins: in two of three cases around a thing, rather a small one."""
    room = np.maximum(np.array(case.image.shape) - size, 0)
    if len(case.centres_zyx) and rng.random() < 2 / 3:
        share = 1 / case.diameters_mm
        centre = case.centres_zyx[rng.choice(len(share), p=share / share.sum())]
        wanted = np.rint(centre - size * rng.uniform(0.25, 0.75, 3)).astype(int)
        corner: Array = np.clip(wanted, 0, room)
        return corner
    anywhere: Array = rng.integers(0, room + 1)
    return anywhere


def _to(targets: DetectionTargets, device: torch.device) -> DetectionTargets:
    return DetectionTargets(
        targets.score.to(device),
        targets.offset.to(device),
        targets.log_size.to(device),
        targets.ignored.to(device),
    )
