"""What train, pack and contour do with a cascade (find, then contour)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.annotate import write_annotation
from consilium.cases.dataset import Dataset
from consilium.cases.files import write_atomically
from consilium.cli.console import INTERRUPTED, console, print_table, progress_bar, stop_on_interrupt
from consilium.cli.contoured import model_reader
from consilium.errors import ConfigurationError
from consilium.geometry.volume import Volume
from consilium.inference.cascade import CascadeResult, contour_instances
from consilium.inference.cascade_file import CASCADE_FILE, load_cascade
from consilium.training.cascade_run import (
    CascadeConfig,
    CascadeRun,
    instance_structures,
    open_cascade_run,
    start_cascade_run,
)
from consilium.training.cascade_training import train_cascade
from consilium.training.config import Budget
from consilium.types import Mask, Progress, no_progress

ALGORITHM = "consilium cascade"


def settings_of(dataset: Dataset, *, structures: tuple[str, ...], **others: Any) -> CascadeConfig:
    """Settings of a cascade; other structures with instances are neither to be found nor wrong.

    Raises:
        ConfigurationError: It is not clear what is to be found.
    """
    known = instance_structures(dataset)
    wanted = structures or (tuple(known) if len(known) == 1 else ())
    if len(wanted) != 1 or wanted[0] not in known:
        raise ConfigurationError(
            f"--detect: needs one structure with instances; got {list(structures) or 'none'}. The "
            f"dataset has instances of: {', '.join(known) or 'nothing'}. Name one with --structures."
        )
    ignored = tuple(name for name in known if name != wanted[0])
    return CascadeConfig(structure=wanted[0], ignored=ignored, **others)


def start(dataset: Dataset, folder: Path, config: CascadeConfig, budget: Budget) -> int:
    """Train a new cascade; returns the exit code."""
    return _train(dataset, start_cascade_run(dataset, folder, config, budget))


def resume(dataset: Dataset, folder: Path) -> int:
    """Go on with an interrupted training; returns the exit code."""
    return _train(dataset, open_cascade_run(folder))


def _train(dataset: Dataset, run: CascadeRun) -> int:
    for reason in run.reasons:
        console.print(reason, markup=False, highlight=False)
    with stop_on_interrupt() as should_stop, progress_bar() as progress:
        cascade = train_cascade(dataset, run, progress=progress, should_stop=should_stop)
    if cascade is None:
        console.print(
            "Interrupted; everything is kept. "
            f"Go on with: consilium train {dataset.folder} {run.folder} --resume",
            markup=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    console.print(
        f"Written: {run.folder / CASCADE_FILE}. "
        f"How well it finds: consilium evaluate {run.folder} {dataset.folder} evaluation",
        markup=False,
        soft_wrap=True,
    )
    return 0


def pack(file: Path, target: Path) -> str:
    """Check a run's cascade and copy it to a file that can be handed on; returns its digest."""
    cascade = load_cascade(file)
    write_atomically(target, file.read_bytes())
    return cascade.digest


def find(file: Path, volume: Volume, progress: Progress) -> tuple[str, CascadeResult]:
    """Digest of the cascade, and what it finds and contours in one image."""
    cascade = load_cascade(file)
    return cascade.digest, contour_instances(cascade, volume, progress=progress)


def draw(file: Path, volume: Volume) -> tuple[Iterator[tuple[str, Mask]], str, str]:
    """Masks of what a cascade finds in an image, the algorithm's name and the model's digest."""
    digest, result = find(file, volume, no_progress)
    return instance_masks(result), ALGORITHM, digest


def contour_dataset(file: Path, dataset: Dataset) -> None:
    """Contour every case: all things found together become one contour, with the model as a reader."""
    cascade = load_cascade(file)
    reader = model_reader([cascade.digest])
    rows = []
    with progress_bar() as progress:
        for done, case_id in enumerate(dataset.case_ids):
            progress("contouring cases", done, len(dataset.case_ids))
            if dataset.case(case_id).annotation(cascade.structure, reader) is not None:
                continue
            result = contour_instances(cascade, dataset.load_image(dataset.case(case_id)))
            write_annotation(dataset, case_id, cascade.structure, result.labels != 0, reader=reader)
            surest = result.instances[0].confidence if result.instances else None
            volume = sum(instance.volume_cm3 for instance in result.instances)
            rows.append((case_id, len(result.instances), surest, volume))
        progress("contouring cases", len(dataset.case_ids), len(dataset.case_ids))
    print_table(cascade.structure, ["case", "found", "surest", "cm³"], rows)
    console.print(
        f"Reader {reader}. Look at them and decide: consilium review {dataset.folder}", soft_wrap=True
    )


def print_found(result: CascadeResult) -> None:
    """A table of what was found, and the sentence."""
    if result.instances:
        print_table(
            "Found",
            ["name (confidence)", "diameter mm", "cm³", "x, y, z (LPS mm)"],
            [
                (
                    name,
                    instance.candidate.diameter_mm,
                    instance.volume_cm3,
                    ", ".join(f"{v:.1f}" for v in instance.candidate.centre_lps_mm),
                )
                for name, instance in zip(instance_names(result), result.instances, strict=True)
            ],
        )
    console.print(result.sentence, markup=False, highlight=False)


def instance_names(result: CascadeResult) -> list[str]:
    """Name of each ROI: number and confidence, which every viewer shows."""
    return [f"{result.structure} {i.number} ({i.confidence:.2f})" for i in result.instances]


def result_record(result: CascadeResult, digest: str) -> Mapping[str, Any]:
    """What was found and every candidate behind it, for ``contours.json``."""
    rows: list[dict[str, Any]] = [
        {
            "structure": name,
            "number": i.number,
            "confidence": i.confidence,
            "centre_lps_mm": list(i.candidate.centre_lps_mm),
            "diameter_mm": i.candidate.diameter_mm,
            "detector_score": i.candidate.score,
            "voxels": i.voxels,
            "volume_cm3": i.volume_cm3,
        }
        for name, i in zip(instance_names(result), result.instances, strict=True)
    ]
    nothing = {"structure": result.structure, "number": 0, "voxels": 0, "volume_cm3": 0.0}
    return {
        "models": [digest],
        "looked_for": result.structure,
        "said": result.sentence,
        "structures": rows or [nothing],
        "candidates": [
            {"centre_lps_mm": list(c.centre_lps_mm), "diameter_mm": c.diameter_mm, "score": c.score}
            for c in result.candidates
        ],
    }


def instance_masks(result: CascadeResult) -> Iterator[tuple[str, Mask]]:
    """One mask per instance; an empty one says that it was looked for and nothing is there."""
    if not result.instances:
        yield result.structure, np.zeros(result.labels.shape, np.bool_)
    for name, instance in zip(instance_names(result), result.instances, strict=True):
        yield name, result.mask(instance.number)
