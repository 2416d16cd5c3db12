"""Compare a model's contours with the reference, case by case, by every figure; and what the figures say."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.cases.dataset import Dataset
from consilium.errors import RunError
from consilium.geometry.volume import Volume
from consilium.inference.contour import contour_volume
from consilium.inference.model import Model
from consilium.metrics.comparison import MaskComparison, compare_masks
from consilium.metrics.intervals import Interval, bootstrap_mean
from consilium.metrics.surface import SURFACE_DEFINITION
from consilium.training.data import load_reference
from consilium.types import Mask, Progress, no_progress

TOLERANCE_MM = 2.0
SEED = 20261123
FIGURES = (
    ("dice", "Dice"),
    ("surface_dice", f"surface Dice at {TOLERANCE_MM:g} mm"),
    ("hd95_mm", "HD95 (mm)"),
    ("mean_surface_distance_mm", "mean surface distance (mm)"),
    ("added_path_length_mm", "added path length (mm)"),
    ("reference_volume_cm3", "reference volume (cm³)"),
    ("prediction_volume_cm3", "predicted volume (cm³)"),
)
"""Field of `MaskComparison` and what people call it."""

COUNTED_WITH_AN_EMPTY_SIDE = ("dice", "surface_dice")

DEFINITIONS = (
    f"Distances and surface Dice: {SURFACE_DEFINITION}, tolerance {TOLERANCE_MM:g} mm. Added path length: "
    "contour pixels of the reference, slice by slice, that the prediction has not (Vaassen et al. 2020). "
    "Everything on the image's own grid."
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One structure of one case.

    Attributes:
        case_id: Pseudonym of the case.
        patient_id: Pseudonym of the patient.
        structure: Name.
        figures: Every figure.
        promised_dice: What the probabilities promised; NaN where nothing was found.
        doubt: One minus the Dice to be expected; see `consilium.inference.contour.Contoured`.
    """

    case_id: str
    patient_id: str
    structure: str
    figures: MaskComparison
    promised_dice: float
    doubt: float


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """What all cases say about one structure.

    Attributes:
        structure: Name.
        intervals: Figure -> mean with 95 % interval over patients in whom neither mask is empty (Dice and
            surface Dice: over all but those in whom both are empty; an empty side counts as 0).
        cases: Number of cases compared.
        empty_reference: Cases in which the structure is absent, but something was predicted.
        empty_prediction: Cases in which nothing was predicted, but the structure is there.
        empty_both: Cases in which it is absent, and nothing was predicted: right, but no figure.
    """

    structure: str
    intervals: dict[str, Interval]
    cases: int
    empty_reference: int
    empty_prediction: int
    empty_both: int


@dataclass(frozen=True, kw_only=True)
class CaseMasks:
    """One case's image with both contours of every known structure, for pictures."""

    case_id: str
    image: Volume
    references: dict[str, Mask]
    predictions: dict[str, Mask]


def evaluate_cases(
    model: Model,
    dataset: Dataset,
    case_ids: Sequence[str],
    *,
    reader: str | None = None,
    progress: Progress = no_progress,
) -> Iterator[tuple[CaseMasks, list[Compared]]]:
    """Contour every case and compare; one case at a time.

    Args:
        model: The model.
        dataset: That holds the cases.
        case_ids: Which.
        reader: Whose contours are the reference; None: each case's first reader who is not derived.
        progress: Told after each case.

    Raises:
        RunError: No case says anything about a structure of the model.
    """
    found = 0
    for done, case_id in enumerate(case_ids):
        case = dataset.case(case_id)
        image = dataset.load_image(case)
        known = {name: load_reference(dataset, case, name, reader) for name in model.structures}
        references = {name: mask for name, mask in known.items() if mask is not None}
        progress("evaluating", done, len(case_ids))
        if not references:
            continue
        predictions: dict[str, Mask] = {}
        rows = []
        for name, mask, contoured in contour_volume(model, image):
            if name not in references:
                continue
            predictions[name] = mask
            figures = compare_masks(
                references[name], mask, image.grid.spacing_zyx_mm, tolerance_mm=TOLERANCE_MM
            )
            rows.append(
                Compared(
                    case_id=case_id,
                    patient_id=case.patient_id,
                    structure=name,
                    figures=figures,
                    promised_dice=contoured.promised_dice,
                    doubt=contoured.doubt,
                )
            )
        found += len(rows)
        yield CaseMasks(case_id=case_id, image=image, references=references, predictions=predictions), rows
        progress("evaluating", done + 1, len(case_ids))
    if not found:
        raise RunError(
            "evaluation: at least one case must say something about a structure of the model; none does. "
            f"The model knows {', '.join(model.structures)}."
        )


def summarise(rows: Sequence[Compared], structures: Sequence[str]) -> list[StructureSummary]:
    """Means with bootstrap intervals over patients, per structure; empty cases counted apart."""
    return [_summarise_one([row for row in rows if row.structure == name], name) for name in structures]


def mean_dice(summaries: Sequence[StructureSummary]) -> float:
    """Mean over structures of their mean Dice, as shown while training; NaN if nothing was measured."""
    found = [s.intervals["dice"].estimate for s in summaries]
    found = [value for value in found if value == value]
    return sum(found) / len(found) if found else math.nan


def to_json(rows: Sequence[Compared], summaries: Sequence[StructureSummary]) -> dict[str, Any]:
    """Everything as JSON; NaN and infinity as None."""
    return {
        "definitions": DEFINITIONS,
        "tolerance_mm": TOLERANCE_MM,
        "mean_dice": _plain(mean_dice(summaries)),
        "structures": {
            s.structure: {
                "cases": s.cases,
                "empty_reference": s.empty_reference,
                "empty_prediction": s.empty_prediction,
                "empty_both": s.empty_both,
                "figures": {
                    field: {key: _plain(value) for key, value in vars(interval).items()}
                    for field, interval in s.intervals.items()
                },
            }
            for s in summaries
        },
        "cases": [
            {
                "case_id": row.case_id,
                "patient_id": row.patient_id,
                "structure": row.structure,
                "promised_dice": _plain(row.promised_dice),
                "doubt": _plain(row.doubt),
                **{key: _plain(value) for key, value in row.figures.as_dict().items()},
            }
            for row in rows
        ],
    }


def _summarise_one(rows: Sequence[Compared], structure: str) -> StructureSummary:
    rng = np.random.default_rng(SEED)
    patients = [row.patient_id for row in rows]
    one_empty = np.array([row.figures.empty != "neither" for row in rows], dtype=np.bool_)
    intervals = {}
    for field, _ in FIGURES:
        values = np.array([float(getattr(row.figures, field)) for row in rows])
        if field not in COUNTED_WITH_AN_EMPTY_SIDE:
            values[one_empty] = np.nan
        intervals[field] = bootstrap_mean(values, rng, patients=patients)
    empties = [row.figures.empty for row in rows]
    return StructureSummary(
        structure=structure,
        intervals=intervals,
        cases=len(rows),
        empty_reference=empties.count("reference"),
        empty_prediction=empties.count("prediction"),
        empty_both=empties.count("both"),
    )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
