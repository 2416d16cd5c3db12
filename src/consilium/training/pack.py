"""From a run's folder to one model file with its card."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilium.errors import RunError
from consilium.inference.model import BEST, ModelDescription, read_model_file, save_model
from consilium.training.run_folder import open_run


def pack_run(folder: Path, path: Path, *, largest_component: tuple[str, ...] = ()) -> str:
    """Write a run's best weights with everything that is needed to use them; returns the digest.

    Args:
        folder: Of the run.
        path: Of the model file; replaced in one step.
        largest_component: Structures of which only the largest connected part is kept.

    Raises:
        RunError: The run has no validated weights yet.
    """
    if not (folder / BEST).is_file():
        raise RunError(f"{folder.name}: must have been validated once before it is packed. Train it first.")
    description, weights, _ = read_model_file(folder / BEST)
    description = replace(
        description,
        card={**description.card, **make_card(folder, description)},
        largest_component=largest_component,
    )
    return save_model(path, description, weights)


def make_card(folder: Path, description: ModelDescription) -> Mapping[str, Any]:
    """What a person should know before using the model: counts and scores, nothing of a single patient."""
    run = open_run(folder)
    validated = [entry for entry in run.read_log() if entry["best"]]
    best = validated[-1] if validated else None
    return {
        "use": "Proposes contours that a person must look at and correct. No medical device.",
        "structures": list(description.structures),
        "training_cases": len(run.split.training),
        "validation_cases": len(run.split.validation),
        "cases_per_structure": {
            name: {"training": counts[0], "validation": counts[1]}
            for name, counts in run.split.structures.items()
            if name in description.structures
        },
        "validation_dice": None if best is None else best["validation"],
        "score": "Dice on whole volumes of the validation patients, on the images' own grid; the best of all "
        "validations, so slightly too good",
        "steps": None if best is None else best["step"],
        "spacing_zyx_mm": list(description.preprocessing.spacing_zyx_mm),
        "seed": run.config.seed,
    }
