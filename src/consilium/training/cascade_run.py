"""A run that makes a cascade: what a person decides, what the data decide, and the folder."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Case, Instance
from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.cases.split import Split, load_splits, save_splits, split_cases
from consilium.errors import ConfigurationError, DatasetError, RunError
from consilium.inference.preprocess import Preprocessing, network_grid
from consilium.training.candidate_patches import PatchConfig
from consilium.training.config import Budget
from consilium.training.data import usable_annotation
from consilium.training.detection import LUNG_WINDOW, DetectionConfig, sort_instances
from consilium.training.run_folder import CONFIG, SPLIT, describe_environment
from consilium.types import FloatArray, Shape, Triple

CASCADE_RUN_FORMAT = "consilium-cascade-run"
CASCADE_RUN_VERSION = 1
DETECTOR_SHARE = 0.6
"""Part of the budget that the detector gets; the contours get the rest."""

VALIDATION_FRACTION = 0.2
VOXELS_ACROSS = 3.0
"""The detector's grid is no finer than this many voxels across a small thing need."""

DETECTOR_CROP, DETECTOR_BATCH, DETECTOR_RATE = (32, 48, 48), 8, 3e-3
STEP = 8
SMALLEST_PATCH, LARGEST_PATCH = 24, 96
PATCH_ROOM, PATCH_ROOM_MM = 1.25, 16.0
"""A patch holds a large thing's diameter times this, and so much more."""


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """What a person decides about a cascade.

    Args:
        structure: What to find; its cases have `Instance` records, or say that it is absent.
        ignored: Structures whose instances are neither to be found nor wrong.
        least_readers: Instances that fewer readers saw are ignored; those without readers always count.
        reader: Whose outlines teach the contours; None: see `Case.annotation`.
        spacing_zyx_mm: Of the contours' grid; None: the images' own median.
        seed: Decides split, weights, order and changes.

    Raises:
        ConfigurationError: A number that cannot be.
    """

    structure: str
    ignored: tuple[str, ...] = ()
    least_readers: int = 1
    reader: str | None = None
    spacing_zyx_mm: Triple | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.least_readers < 1 or not 0 <= self.seed < 2**31:
            raise ConfigurationError(
                f"cascade: least_readers must be at least 1 and the seed in [0, 2^31); got "
                f"{self.least_readers} and {self.seed}."
            )

    def sort(self, case: Case) -> tuple[list[Instance], list[Instance]]:
        """What is to be found in a case, and what is neither to be found nor wrong."""
        return sort_instances(case, self.structure, ignored=self.ignored, least_readers=self.least_readers)


@dataclass(frozen=True, kw_only=True)
class CascadeRun:
    """An opened run of a cascade.

    Args:
        folder: Where it lies.
        config: What a person decided.
        detection: Settings of the detector's training.
        patches: Settings of the contours' training.
        split: Which cases train and which validate.
        reasons: Why the settings are as they are, in sentences.
    """

    folder: Path
    config: CascadeConfig
    detection: DetectionConfig
    patches: PatchConfig
    split: Split
    reasons: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the weights depend on, beside the images."""
        content = [_record(self), list(self.split.training), list(self.split.validation)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def start_cascade_run(
    dataset: Dataset,
    folder: Path,
    config: CascadeConfig,
    budget: Budget,
    *,
    split: Split | None = None,
) -> CascadeRun:
    """Split the patients, decide grids and patches from the instances, and make the run's folder.

    Args:
        dataset: To learn from.
        folder: New or empty.
        config: What a person decided.
        budget: Of both trainings together.
        split: None: 80 % of the patients train, 20 % validate.

    Raises:
        RunError: ``folder`` holds files.
        DatasetError: Fewer than two patients say anything about the structure, or nothing is to be found.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder.name}: must be new or empty; it holds files. Go on with --resume, or name another."
        )
    split = split or _split(dataset, config)
    run = plan_cascade([dataset.case(one) for one in split.training], folder, config, budget, split)
    folder.mkdir(parents=True, exist_ok=True)
    save_splits(folder / SPLIT, [split], seed=config.seed)
    record = {
        "format": CASCADE_RUN_FORMAT,
        "version": CASCADE_RUN_VERSION,
        **_record(run),
        "reasons": list(run.reasons),
        "environment": describe_environment(),
    }
    write_json(folder / CONFIG, record)
    return run


def plan_cascade(
    cases: Sequence[Case], folder: Path, config: CascadeConfig, budget: Budget, split: Split
) -> CascadeRun:
    """Decide grids and patches from the training cases.

    Raises:
        DatasetError: Nothing is to be found in them.
    """
    diameters = np.array([i.diameter_mm for case in cases for i in config.sort(case)[0]])
    if not len(diameters):
        raise DatasetError(
            f"dataset: a training case must have an instance of {config.structure!r} of known size; none has."
        )
    grids = [case.image.grid.to_canonical()[0] for case in cases]
    native = np.median([grid.spacing_zyx_mm for grid in grids], axis=0)
    small, large = (float(np.percentile(diameters, share)) for share in (5, 95))
    fine = _triple(config.spacing_zyx_mm or native)
    coarse = _triple(np.maximum(fine, small / VOXELS_ACROSS))
    patch = _patch_shape(large, fine)
    crop = _crop_shape([network_grid(case.image.grid, coarse).shape_zyx for case in cases])
    reasons = (
        f"{len(diameters)} things to find in {len(cases)} training cases, {small:.1f} to {large:.1f} mm "
        "across (5th and 95th percentile).",
        f"Detector on {_mm(coarse)} mm: the images' median, but no finer than {VOXELS_ACROSS:g} voxels "
        "across a small thing need.",
        f"Contours on {_mm(fine)} mm in patches of {patch} voxels around each candidate.",
    )
    return CascadeRun(
        folder=folder,
        config=config,
        detection=DetectionConfig(
            structure=config.structure,
            ignored=config.ignored,
            least_readers=config.least_readers,
            preprocessing=Preprocessing(spacing_zyx_mm=coarse, windows=LUNG_WINDOW),
            budget=share_of(budget, DETECTOR_SHARE),
            crop_zyx=crop,
            batch=DETECTOR_BATCH,
            rate=DETECTOR_RATE,
            seed=config.seed,
        ),
        patches=PatchConfig(
            structure=config.structure,
            preprocessing=Preprocessing(spacing_zyx_mm=fine, windows=LUNG_WINDOW),
            patch_zyx=patch,
            budget=share_of(budget, 1 - DETECTOR_SHARE),
            seed=config.seed,
        ),
        split=split,
        reasons=reasons,
    )


def open_cascade_run(folder: Path) -> CascadeRun:
    """Open a run's folder.

    Raises:
        RunError: It is none of a cascade.
    """
    record: dict[str, Any] = read_json(folder / CONFIG)
    found = (record.get("format"), record.get("version"))
    if found != (CASCADE_RUN_FORMAT, CASCADE_RUN_VERSION):
        raise RunError(
            f"{folder.name}: must be a run of format {CASCADE_RUN_FORMAT!r} version {CASCADE_RUN_VERSION}; "
            f"found {found}."
        )
    return CascadeRun(
        folder=folder,
        config=CascadeConfig(**_tuples(record["config"])),
        detection=DetectionConfig.from_json(record["detection"]),
        patches=PatchConfig.from_json(record["patches"]),
        split=load_splits(folder / SPLIT)[0],
        reasons=tuple(record["reasons"]),
    )


def is_cascade_run(folder: Path) -> bool:
    """Whether a folder is the run of a cascade, finished or not."""
    try:
        return bool(read_json(folder / CONFIG).get("format") == CASCADE_RUN_FORMAT)
    except DatasetError:
        return False


def instance_structures(dataset: Dataset) -> list[str]:
    """Structures that any case has instances of, in alphabetical order."""
    return sorted({i.structure for case in dataset.cases() for i in case.instances})


def share_of(budget: Budget, share: float) -> Budget:
    """A part of a budget; of epochs each part takes all."""
    if budget.minutes is not None:
        return Budget(minutes=budget.minutes * share, cpu_time=budget.cpu_time)
    if budget.steps is not None:
        return Budget(steps=max(1, round(budget.steps * share)))
    return budget


def _split(dataset: Dataset, config: CascadeConfig) -> Split:
    usable = [
        case
        for case in dataset.cases()
        if config.sort(case)[0] or usable_annotation(case, config.structure, config.reader) is not None
    ]
    if len({case.patient_id for case in usable}) < 2:
        raise DatasetError(
            f"dataset: at least two patients must say something about {config.structure!r}; "
            f"{len(usable)} case(s) do. Structures with instances: {', '.join(instance_structures(dataset))}."
        )
    return split_cases(usable, seed=config.seed, validation_fraction=VALIDATION_FRACTION)


def _record(run: CascadeRun) -> dict[str, Any]:
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(run.config).items()}
    return {"config": config, "detection": run.detection.to_json(), "patches": run.patches.to_json()}


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}


def _patch_shape(large_mm: float, spacing_zyx_mm: Triple) -> Shape:
    wanted = large_mm * PATCH_ROOM + PATCH_ROOM_MM
    voxels = [STEP * math.ceil(wanted / spacing / STEP) for spacing in spacing_zyx_mm]
    z, y, x = (min(LARGEST_PATCH, max(SMALLEST_PATCH, n)) for n in voxels)
    return z, y, x


def _crop_shape(shapes: Sequence[Shape]) -> Shape:
    """No larger than the largest scan, so that no crop is mostly padding."""
    largest = np.max(shapes, axis=0)
    z, y, x = (min(n, STEP * math.ceil(have / STEP)) for n, have in zip(DETECTOR_CROP, largest, strict=True))
    return int(z), int(y), int(x)


def _triple(values: FloatArray | Triple) -> Triple:
    z, y, x = (round(float(v), 3) for v in values)
    return z, y, x


def _mm(spacing: Triple) -> str:
    return " x ".join(f"{v:g}" for v in spacing)
