"""From a dataset and settings to a run that trains: split, plan, folder, prepared cases."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.cases.dataset import Dataset
from consilium.cases.split import Split, split_cases
from consilium.errors import DatasetError, RunError
from consilium.inference.device import available_memory_bytes, choose_device
from consilium.training.config import Budget, TrainingConfig
from consilium.training.data import PreparedCase, prepare_cases, usable_annotation
from consilium.training.facts import choose_structures
from consilium.training.loop import Outcome, train
from consilium.training.plan import Plan
from consilium.training.planning import make_plan
from consilium.training.run_folder import CONFIG, Run, create_run, open_run
from consilium.types import Progress, no_progress

VALIDATION_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Prepared cases of a run."""

    training: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]


def start_run(
    dataset: Dataset,
    folder: Path,
    config: TrainingConfig,
    budget: Budget,
    *,
    split: Split | None = None,
    plan: Plan | None = None,
    progress: Progress = no_progress,
) -> Run:
    """Split the patients 80 to 20, make the plan, and make the run's folder.

    Args:
        dataset: To learn from.
        folder: New or empty.
        config: What a person decided.
        budget: How long to train.
        split: None: 80 % of the patients train, 20 % validate, balanced over structures.
        plan: None: made from the data and the memory at hand.
        progress: Told while images are looked at.
    """
    if split is None:
        split = split_labelled(dataset, config)
    if plan is None:
        device = choose_device()
        plan = make_plan(
            dataset,
            config,
            memory_bytes=available_memory_bytes(device),
            device=device,
            case_ids=(*split.training, *split.validation),
            progress=progress,
        )
    return create_run(folder, config, plan, split, budget)


def open_same_run(
    folder: Path, config: TrainingConfig, budget: Budget, *, split: Split | None = None
) -> Run | None:
    """The run that ``folder`` holds, to go on with; None where it holds none.

    Args:
        folder: Of the run.
        config: What it must have been started with.
        budget: Likewise.
        split: Likewise; None: any.

    Raises:
        RunError: ``folder`` holds a run of other settings, or on other cases.
    """
    if not (folder / CONFIG).exists():
        return None
    run = open_run(folder)
    if (run.config, run.budget) != (config, budget):
        raise RunError(f"{folder.name}: holds a run of other settings. Name another folder.")
    if split is not None and run.split != split:
        raise RunError(
            f"{folder.name}: must hold a run on the same cases; the dataset has changed since. Name another "
            "folder."
        )
    return run


def split_labelled(
    dataset: Dataset, config: TrainingConfig, *, validation_fraction: float = VALIDATION_FRACTION
) -> Split:
    """A split by patient over the cases that say something about a structure to learn.

    Raises:
        DatasetError: Fewer than two patients are left.
    """
    cases = list(dataset.cases())
    structures = choose_structures(cases, config)
    labelled = [
        case
        for case in cases
        if any(usable_annotation(case, name, config.reader) is not None for name in structures)
    ]
    return split_cases(labelled, seed=config.seed, validation_fraction=validation_fraction)


def prepare_run(dataset: Dataset, run: Run, *, progress: Progress = no_progress) -> Parts:
    """The run's cases on the network's grid, from the dataset's cache or made now."""
    missing = set(run.split.training + run.split.validation) - set(dataset.case_ids)
    if missing:
        raise DatasetError(
            f"dataset: must hold every case of the run's split; {len(missing)} are missing, first "
            f"{sorted(missing)[0]}. Name the dataset that the run was started on."
        )
    ids = (*run.split.training, *run.split.validation)
    cases = prepare_cases(
        dataset,
        ids,
        run.plan.structures,
        run.plan.preprocessing,
        reader=run.config.reader,
        progress=progress,
    )
    known = len(run.split.training)
    return Parts(training=tuple(cases[:known]), validation=tuple(cases[known:]))


def train_dataset(
    dataset: Dataset,
    folder: Path,
    config: TrainingConfig,
    budget: Budget,
    *,
    progress: Progress = no_progress,
    on_validation: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Outcome:
    """The whole way from a dataset to a trained run; goes on where ``folder`` holds the same run already.

    Raises:
        RunError: ``folder`` holds a run of other settings.
    """
    run = open_same_run(folder, config, budget)
    if run is None:
        run = start_run(dataset, folder, config, budget, progress=progress)
    parts = prepare_run(dataset, run, progress=progress)
    return train(run, parts.training, parts.validation, progress=progress, on_validation=on_validation)
