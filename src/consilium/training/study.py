"""The study: several networks on the same split, seeds and budget; resumable; one table of what came out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.cases.split import Split
from consilium.errors import ConfigurationError
from consilium.inference.device import available_memory_bytes, choose_device
from consilium.inference.model import BEST, load_model
from consilium.metrics.intervals import Interval, bootstrap_mean
from consilium.training.checkpoint import LAST
from consilium.training.config import Budget, TrainingConfig
from consilium.training.loop import train
from consilium.training.planning import make_plan
from consilium.training.run_folder import Run, create_run
from consilium.training.start import open_same_run, prepare_run, split_labelled
from consilium.training.validation import compute_dice
from consilium.types import Progress, no_progress

RESULT = "result.json"
SCALE_WEIGHTS = (1.0, 1.0, 1.0)
WEIGHTED_SCALES = (1.0, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Args:
        name: What people call it.
        changes: Fields of `TrainingConfig` that differ from the study's.
    """

    name: str
    changes: dict[str, Any]


ARMS = (
    Arm(name="U-Net", changes={"network": "unet3d"}),
    Arm(name="iUNet", changes={"network": "iunet"}),
    Arm(name="iUNet, multi-scale", changes={"network": "iunet", "scale_weights": SCALE_WEIGHTS}),
    Arm(name="iUNet, weighted multi-scale", changes={"network": "iunet", "scale_weights": WEIGHTED_SCALES}),
)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study does.

    Args:
        base: Settings that all arms share.
        arms: Ways to train.
        seeds: Each arm is trained once per seed, on the same split.
        budget: Of each training.

    Raises:
        ConfigurationError: No arm or no seed, or doubled ones.
    """

    base: TrainingConfig
    budget: Budget
    arms: tuple[Arm, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if (
            not names
            or not self.seeds
            or len(set(names)) != len(names)
            or len(set(self.seeds)) != len(self.seeds)
        ):
            raise ConfigurationError(
                f"study: arms and seeds must be given, each once; got {names} and {list(self.seeds)}."
            )


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What one training of the study ended with.

    Attributes:
        arm: Name.
        seed: Of the training.
        dice: Validation case -> structure -> Dice; None where nothing could be measured.
        mean_dice: Mean over structures of the mean over cases; None where nothing could be measured.
        log: The run's validations.
        steps: Steps done.
        step_s: Seconds per step, validation apart.
        predicted_bytes: Predicted peak memory.
        patch_zyx: None for whole volumes.
    """

    arm: str
    seed: int
    dice: dict[str, dict[str, float | None]]
    mean_dice: float | None
    log: list[dict[str, Any]]
    steps: int
    step_s: float
    predicted_bytes: int
    patch_zyx: tuple[int, int, int] | None


def run_study(
    dataset: Dataset,
    folder: Path,
    config: StudyConfig,
    *,
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
    on_result: Callable[[ArmResult], None] = lambda result: None,
) -> list[ArmResult]:
    """Train every arm with every seed; what ``folder`` holds already is not trained again.

    Returns:
        The results that are there; fewer than arms times seeds only if ``should_stop`` ended the study.

    Raises:
        RunError: ``folder`` holds runs of other settings, or on other cases.
    """
    split = split_labelled(dataset, config.base)
    results: list[ArmResult] = []
    for seed in config.seeds:
        for arm in config.arms:
            place = run_place(folder, arm.name, seed)
            wanted = replace(config.base, **arm.changes, seed=seed)
            open_same_run(place, wanted, config.budget, split=split)
            result = _load_result(place)
            if result is None:
                run = train_once(
                    dataset,
                    place,
                    wanted,
                    config.budget,
                    split=split,
                    progress=progress,
                    should_stop=should_stop,
                )
                if run is None:
                    return results
                result = _conclude(dataset, run, arm.name)
            results.append(result)
            on_result(result)
    return results


def run_place(folder: Path, arm: str, seed: int) -> Path:
    """Where a study keeps the run of an arm and seed."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in arm.lower()).split())
    return folder / "runs" / f"{slug}-seed{seed}"


def train_once(
    dataset: Dataset,
    place: Path,
    config: TrainingConfig,
    budget: Budget,
    *,
    split: Split,
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run | None:
    """Train one run of a larger work, or go on with it; None if it was stopped before the end.

    Raises:
        RunError: ``place`` holds a run of other settings, or on other cases.
    """
    run = open_same_run(place, config, budget, split=split)
    if run is None:
        device = choose_device()
        plan = make_plan(
            dataset,
            config,
            memory_bytes=available_memory_bytes(device),
            device=device,
            case_ids=(*split.training, *split.validation),
            progress=progress,
        )
        run = create_run(place, config, plan, split, budget)
    parts = prepare_run(dataset, run, progress=progress)
    outcome = train(run, parts.training, parts.validation, progress=progress, should_stop=should_stop)
    return run if outcome.finished else None


def summarise_arm(results: Sequence[ArmResult], arm: str) -> Interval:
    """Mean Dice of an arm over its seeds with a 95 % interval over validation cases.

    Each case's figure is the mean over structures and seeds, so the interval says what other patients would
    change, not other seeds.
    """
    cases: dict[str, list[float]] = {}
    for result in results:
        if result.arm == arm:
            for case_id, row in result.dice.items():
                found = [value for value in row.values() if value is not None]
                if found:
                    cases.setdefault(case_id, []).append(sum(found) / len(found))
    means = [sum(values) / len(values) for values in cases.values()]
    return bootstrap_mean(means, np.random.default_rng(0))


def spread_over_seeds(results: Sequence[ArmResult], arm: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds of an arm's mean Dice; NaN deviation for one seed."""
    values = [r.mean_dice for r in results if r.arm == arm and r.mean_dice is not None]
    if not values:
        return math.nan, math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _conclude(dataset: Dataset, run: Run, arm: str) -> ArmResult:
    """Score the kept weights case by case, and keep the result."""
    parts = prepare_run(dataset, run)
    started = time.monotonic()
    scores = compute_dice(load_model(run.folder), parts.validation)
    validation_s = time.monotonic() - started
    log = run.read_log()
    steps = int(log[-1]["step"])
    busy = float(log[-1]["elapsed_s"]) - validation_s * max(0, len(log) - 1)
    dice = {
        case_id: {
            name: (value if value == value else None)
            for name, value in zip(scores.structures, row, strict=True)
        }
        for case_id, row in zip(scores.case_ids, scores.table, strict=True)
    }
    result = ArmResult(
        arm=arm,
        seed=run.config.seed,
        dice=dice,
        mean_dice=scores.mean if scores.mean == scores.mean else None,
        log=log,
        steps=steps,
        step_s=max(busy, 0.0) / max(1, steps),
        predicted_bytes=run.plan.predicted_bytes,
        patch_zyx=run.plan.patch_zyx,
    )
    write_json(
        run.folder / RESULT, {**vars(result), "patch_zyx": run.plan.patch_zyx and list(run.plan.patch_zyx)}
    )
    return result


def _load_result(place: Path) -> ArmResult | None:
    if not all((place / name).exists() for name in (RESULT, BEST, LAST)):
        return None
    record = read_json(place / RESULT)
    patch = record["patch_zyx"]
    return ArmResult(**{**record, "patch_zyx": patch and (patch[0], patch[1], patch[2])})
