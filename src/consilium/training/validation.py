"""Full-volume Dice on the image's own grid: shown while training, and what `evaluate` reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.geometry.volume import Volume
from consilium.inference.contour import probabilities_of_image
from consilium.inference.doubt import Calibration, expected_dice, fit_calibration
from consilium.inference.model import Model
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.preprocess import map_to_grid
from consilium.metrics.overlap import dice
from consilium.training.data import PreparedCase, unpack_structures
from consilium.training.earlier_day import earlier_day
from consilium.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class DiceScores:
    """Dice of every case and structure.

    Attributes:
        case_ids: The cases.
        structures: The structures.
        table: Per case, per structure: in [0, 1]; NaN where the structure is unknown, or where it is absent
            and nothing was predicted.
        promised: Likewise, the Dice that the probabilities promise; see `consilium.inference.doubt`.
    """

    case_ids: tuple[str, ...]
    structures: tuple[str, ...]
    table: tuple[tuple[float, ...], ...]
    promised: tuple[tuple[float, ...], ...]

    def per_structure(self) -> dict[str, float]:
        """Mean over cases; NaN where no case says anything."""
        return {name: _mean([row[s] for row in self.table]) for s, name in enumerate(self.structures)}

    def counts(self) -> dict[str, int]:
        """Number of cases behind each mean."""
        return {
            name: sum(1 for row in self.table if row[s] == row[s]) for s, name in enumerate(self.structures)
        }

    @property
    def mean(self) -> float:
        """Mean over the structures' means, so that a rare structure weighs as much as a frequent one."""
        return _mean(list(self.per_structure().values()))

    def calibrate(self) -> Calibration | None:
        """From promised to kept Dice over all cases and structures; None with too few of them."""
        return fit_calibration(
            [value for row in self.promised for value in row], [value for row in self.table for value in row]
        )

    def to_json(self) -> dict[str, Any]:
        """Means and counts; NaN as None."""
        return {
            "mean": _or_none(self.mean),
            "structures": {name: _or_none(value) for name, value in self.per_structure().items()},
            "cases": self.counts(),
        }


def compute_dice(
    model: Model, cases: Sequence[PreparedCase], *, progress: Progress = no_progress
) -> DiceScores:
    """Predict every case as a whole and compare on its image's own grid."""
    table, promised = [], []
    for done, case in enumerate(cases):
        image = np.ascontiguousarray(case.image[:])
        prior = None
        if model.description.takes_prior:
            masks = unpack_structures(case.bits[:], len(model.structures))
            # The same earlier day at every validation, another one for every case.
            rng = np.random.default_rng([*case.case_id.encode()])
            prior = earlier_day(image, masks, case.known, spacing_zyx_mm=case.grid.spacing_zyx_mm, rng=rng)
        probability = probabilities_of_image(model, image, prior)
        row, promises = [], []
        for s, name in enumerate(model.structures):
            if not case.known[s]:
                row.append(math.nan)
                promises.append(math.nan)
                continue
            mask = map_to_grid(Volume(probability[s], case.grid), case.original_grid)
            if name in model.description.largest_component:
                mask = keep_largest_component(mask)
            row.append(dice(case.reference(s), mask))
            promises.append(expected_dice(probability[s]))
        table.append(tuple(row))
        promised.append(tuple(promises))
        progress("validating", done + 1, len(cases))
    return DiceScores(
        case_ids=tuple(case.case_id for case in cases),
        structures=model.structures,
        table=tuple(table),
        promised=tuple(promised),
    )


def _mean(values: Sequence[float]) -> float:
    found = [value for value in values if value == value]
    return sum(found) / len(found) if found else math.nan


def _or_none(value: float) -> float | None:
    return value if value == value else None
