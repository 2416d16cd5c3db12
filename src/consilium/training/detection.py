"""Training of a detector on whole scans or parts of them, from the dataset's instance records."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from consilium.cases.cache import CropReader
from consilium.cases.case import Case, Instance
from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, RunError
from consilium.geometry.crop import Box, crop_or_pad
from consilium.geometry.volume import Grid
from consilium.inference.candidates import DetectorDescription, image_to_output
from consilium.inference.device import choose_device, has_fast_bf16
from consilium.inference.preprocess import AIR, Preprocessing, to_channels
from consilium.losses.detection import DetectionLoss, DetectionTargets, detection_loss, make_targets
from consilium.networks.detector import STRIDE, Detector, DetectorConfig, build_detector, with_bf16
from consilium.training.config import Budget
from consilium.training.data import prepare_cases
from consilium.training.learner import Sitting, learn, start_learner
from consilium.types import Array, Progress, Shape, Triple, no_progress

LUNG_WINDOW = ((-1000.0, 400.0),)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Settings of a detector's training.

    Args:
        structure: What to find; cases must have `Instance` records of it, or say that it is absent.
        preprocessing: From image to network.
        ignored: Structures whose instances are neither to be found nor wrong.
        least_readers: Instances that fewer readers saw are ignored too.
        network: The detector's shape.
        loss: Its weights.
        budget: How long.
        crop_zyx: Part of a scan that one sample shows, in voxels, two of three times with a thing in
            it; None: the whole scan.
        batch: Samples per step; above 1 only with ``crop_zyx``.
        rate: Highest learning rate.
        head_rate: The same for the last layer (`TrainingConfig.head_rate` says why).
        seed: Decides weights, order and changes.

    Raises:
        ConfigurationError: A number that cannot be.
    """

    structure: str
    preprocessing: Preprocessing
    ignored: tuple[str, ...] = ()
    least_readers: int = 1
    network: DetectorConfig = field(default_factory=DetectorConfig)
    loss: DetectionLoss = field(default_factory=DetectionLoss)
    budget: Budget = field(default_factory=lambda: Budget(steps=1000))
    crop_zyx: Shape | None = None
    batch: int = 1
    rate: float = 2e-3
    head_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rate < 1 and 0 < self.head_rate < 1):
            raise ConfigurationError(
                f"detection: rates must be in (0, 1); got {self.rate} and {self.head_rate}."
            )
        if self.batch < 1 or (self.batch > 1 and self.crop_zyx is None):
            raise ConfigurationError(
                f"detection: batch must be 1, or more with crop_zyx, for whole scans differ in size; got "
                f"{self.batch}."
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        return {
            "structure": self.structure,
            "preprocessing": self.preprocessing.to_json(),
            "ignored": list(self.ignored),
            "least_readers": self.least_readers,
            "network": self.network.to_dict(),
            "loss": asdict(self.loss),
            "budget": self.budget.to_json(),
            "crop_zyx": None if self.crop_zyx is None else list(self.crop_zyx),
            "batch": self.batch,
            "rate": self.rate,
            "head_rate": self.head_rate,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DetectionConfig":
        """The inverse of `to_json`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        values["preprocessing"] = Preprocessing.from_json(record["preprocessing"])
        values["network"] = DetectorConfig.from_dict(record["network"])
        values["loss"] = DetectionLoss(**record["loss"])
        values["budget"] = Budget(**record["budget"])
        return cls(**values)

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
        image: (Z, Y, X) int16; index it to read a crop.
        grid: Of ``image``.
        centres_zyx: (N, 3) fractional indices of the things to be found.
        diameters_mm: (N,) > 0.
        ignored_zyx: (M, 3) places about which nothing is learnt.
        mask: (Z, Y, X): not 0 inside any of the things; None if nobody outlined them.
    """

    case_id: str
    image: CropReader
    grid: Grid
    centres_zyx: Array
    diameters_mm: Array
    ignored_zyx: Array
    mask: CropReader | None


def sort_instances(
    case: Case, structure: str, *, ignored: Sequence[str] = (), least_readers: int = 1
) -> tuple[list[Instance], list[Instance]]:
    """Instances that are to be found, and those that are neither to be found nor wrong.

    The latter are those of ``ignored`` structures, of unknown diameter, or seen by fewer than
    ``least_readers`` readers (an instance that names no reader counts).
    """
    wanted, skipped = [], []
    for instance in case.instances:
        mine = instance.structure == structure
        seen = not instance.readers or len(instance.readers) >= least_readers
        if mine and seen and instance.diameter_mm > 0:
            wanted.append(instance)
        elif mine or instance.structure in ignored:
            skipped.append(instance)
    return wanted, skipped


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
    prepared = prepare_cases(
        dataset, case_ids, (config.structure,), config.preprocessing, reader=reader, progress=progress
    )
    for one in prepared:
        wanted, skipped = sort_instances(
            dataset.case(one.case_id),
            config.structure,
            ignored=config.ignored,
            least_readers=config.least_readers,
        )
        to_index = one.grid.affine.to_indices
        loaded.append(
            DetectionCase(
                case_id=one.case_id,
                image=one.image,
                grid=one.grid,
                centres_zyx=to_index(np.array([i.centre_lps_mm for i in wanted]).reshape(-1, 3)),
                diameters_mm=np.array([i.diameter_mm for i in wanted]),
                ignored_zyx=to_index(np.array([i.centre_lps_mm for i in skipped]).reshape(-1, 3)),
                mask=_FirstBits(one.bits) if one.known[0] else None,
            )
        )
    return loaded


def train_detector(
    cases: Sequence[DetectionCase], config: DetectionConfig, *, sitting: Sitting | None = None
) -> tuple[Detector, list[float], bool]:
    """Train on whole scans or parts of them.

    Args:
        cases: To learn from.
        config: Settings.
        sitting: Progress, Ctrl-C and where the state is kept.

    Returns:
        The detector in evaluation mode with the moving average of its weights, the loss of each step of this
        sitting, and whether the budget is spent.

    Raises:
        RunError: No case, or a loss that is no number.
    """
    if not cases:
        raise RunError("detection: needs at least one training case; found none. Import more patients.")
    device = choose_device()
    shape = with_bf16(config.network, has_fast_bf16(device))
    detector = build_detector(shape, seed=config.seed).to(device)
    learner = start_learner(detector, rate=config.rate, head_rate=config.head_rate)

    def compute_loss(step: int) -> Tensor:
        images, targets = [], []
        for sample in range(config.batch):
            rng = np.random.default_rng((config.seed, step, sample))
            image, target = make_sample(_case_at(cases, config, step, sample), config, rng)
            images.append(image)
            targets.append(_to(target, device))
        return detection_loss(detector(torch.cat(images).to(device)), targets, config.loss)

    finished = learn(
        learner,
        compute_loss,
        config.budget,
        sitting or Sitting(name="training the detector"),
        rate=config.rate,
        steps_per_epoch=max(1, round(len(cases) / config.batch)),
    )
    learner.give_average()
    return detector.eval(), learner.losses, finished


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
    image = read_box(case.image, box, AIR)
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


def read_box(array: CropReader, box: Box, fill: float) -> Array:
    """The voxels of a box that may reach outside; only what is inside is read."""
    return np.asarray(crop_or_pad(cast("Array", array), box, fill))


def _case_at(
    cases: Sequence[DetectionCase], config: DetectionConfig, step: int, sample: int
) -> DetectionCase:
    """Every case once per epoch, in an order of its own."""
    epoch, place = divmod(step * config.batch + sample, len(cases))
    return cases[int(np.random.default_rng((config.seed, epoch)).permutation(len(cases))[place])]


class _FirstBits:
    """The first structure of packed ones (W, Z, Y, X), as a mask (Z, Y, X) that is read crop by crop."""

    def __init__(self, bits: CropReader) -> None:
        self._bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self._bits.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._bits.dtype

    def __getitem__(self, index: Any) -> Array:
        rest = index if isinstance(index, tuple) else (index,)
        part: Array = self._bits[(slice(0, 1), *rest)][0]
        return part & np.uint8(1)


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
