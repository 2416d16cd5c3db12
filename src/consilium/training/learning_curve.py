"""How many more patients? Dice against the number of training patients, fitted, with an interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.cases.split import Split
from consilium.errors import ConfigurationError, DatasetError
from consilium.inference.model import load_model
from consilium.metrics.intervals import percentile_ends
from consilium.training.config import Budget, TrainingConfig
from consilium.training.facts import choose_structures
from consilium.training.run_folder import Run
from consilium.training.start import open_same_run, prepare_run, split_labelled
from consilium.training.study import train_once
from consilium.training.validation import compute_dice
from consilium.types import FloatArray, Progress, no_progress

POINT = "point.json"
SHARES = (0.25, 0.5, 0.75, 1.0)
SAMPLES = 300
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training on part of the patients.

    Attributes:
        patients: Number of training patients.
        seed: Of the training and of which patients were taken.
        dice: Structure -> mean validation Dice; None where nothing could be measured.
    """

    patients: int
    seed: int
    dice: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Dice = ceiling − gap · patients^(−speed), fitted to points, with resampled fits for intervals.

    Attributes:
        ceiling: In [0, 1]: what no number of patients of this kind exceeds with this training.
        gap: ≥ 0.
        speed: In [0.05, 2].
        drawn: (N, 3) parameters of fits to resampled points.
    """

    ceiling: float
    gap: float
    speed: float
    drawn: FloatArray

    def at(self, patients: float) -> tuple[float, float, float]:
        """Dice at a number of patients, with the ends of its 95 % interval."""
        value = _curve(np.array([self.ceiling, self.gap, self.speed]), np.array([patients]))[0]
        drawn = np.array([_curve(row, np.array([patients]))[0] for row in self.drawn])
        low, high = percentile_ends(drawn, CONFIDENCE)
        return float(value), low, high


def run_learning_curve(
    dataset: Dataset,
    folder: Path,
    config: TrainingConfig,
    budget: Budget,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Point]:
    """Train on growing parts of the training patients, always validated on the same patients; resumable.

    Raises:
        DatasetError: Fewer than four training patients.
        ConfigurationError: No seed, or a structure that no validation patient has.
        RunError: ``folder`` holds runs of other settings, or on other cases.
    """
    if not seeds:
        raise ConfigurationError("learning curve: at least one seed must be given.")
    split = split_labelled(dataset, config)
    config = replace(config, structures=_validated_structures(dataset, split, config))
    patients = {case_id: dataset.case(case_id).patient_id for case_id in split.training}
    names = sorted(set(patients.values()))
    if len(names) < 4:
        raise DatasetError(
            f"learning curve: at least four training patients are needed; found {len(names)}. Import more."
        )
    points: list[Point] = []
    for seed in seeds:
        order = np.random.default_rng([seed, 3]).permutation(len(names))
        for count in sorted({max(2, round(share * len(names))) for share in SHARES}):
            chosen = {names[int(k)] for k in order[:count]}
            part = Split(
                training=tuple(c for c in split.training if patients[c] in chosen),
                validation=split.validation,
                structures=split.structures,
            )
            place = folder / "runs" / f"patients{count}-seed{seed}"
            wanted = replace(config, seed=seed)
            open_same_run(place, wanted, budget, split=part)
            point = _load_point(place)
            if point is None:
                run = train_once(
                    dataset,
                    place,
                    wanted,
                    budget,
                    split=part,
                    progress=progress,
                    should_stop=should_stop,
                )
                if run is None:
                    return points
                point = _conclude(dataset, run, count)
            points.append(point)
    return points


def fit_curve(patients: Sequence[float], dice: Sequence[float], rng: np.random.Generator) -> Fit | None:
    """The power law through the points; None with fewer than three different numbers of patients.

    The interval resamples residuals, so it knows the spread of seeds and subsets, not a change of the kind of
    patients.

    Source:
        Cortes et al. 1993, "Learning curves: asymptotic values and rate of convergence".
    """
    x, y = np.asarray(patients, dtype=float), np.asarray(dice, dtype=float)
    if len(set(x.tolist())) < 3:
        return None
    best = _fit(x, y)
    fitted = _curve(best, x)
    residuals = (y - fitted) * math.sqrt(len(y) / max(1, len(y) - 3))
    drawn = [_fit(x, fitted + rng.choice(residuals, len(residuals))) for _ in range(SAMPLES)]
    return Fit(ceiling=float(best[0]), gap=float(best[1]), speed=float(best[2]), drawn=np.array(drawn))


def _curve(parameters: FloatArray, patients: FloatArray) -> FloatArray:
    ceiling, gap, speed = parameters
    return np.asarray(ceiling - gap * patients ** (-speed))


def _fit(x: FloatArray, y: FloatArray) -> FloatArray:
    start = np.array([min(1.0, float(y.max()) + 0.02), 0.5, 0.5])
    bounds = ([0.0, 0.0, 0.05], [1.0, 10.0, 2.0])
    start = np.clip(start, np.array(bounds[0]) + 1e-6, np.array(bounds[1]) - 1e-6)
    solution = least_squares(lambda p: _curve(p, x) - y, start, bounds=bounds)
    return np.asarray(solution.x)


def _validated_structures(dataset: Dataset, split: Split, config: TrainingConfig) -> tuple[str, ...]:
    """The same for every part of the patients: those asked for, or all that a validation case contours."""
    cases = [dataset.case(case_id) for case_id in split.validation]
    found = choose_structures(cases, replace(config, structures=()))
    missing = [name for name in config.structures if name not in found]
    if missing:
        raise ConfigurationError(
            f"learning curve: every structure must be contoured in a validation patient, whose Dice is the "
            f"curve; {missing} are not. Leave them out, or contour more patients."
        )
    return config.structures or found


def _conclude(dataset: Dataset, run: Run, patients: int) -> Point:
    scores = compute_dice(load_model(run.folder), prepare_run(dataset, run).validation)
    dice = {name: (v if v == v else None) for name, v in scores.per_structure().items()}
    point = Point(patients=patients, seed=run.config.seed, dice=dice)
    write_json(run.folder / POINT, vars(point))
    return point


def _load_point(place: Path) -> Point | None:
    return Point(**read_json(place / POINT)) if (place / POINT).exists() else None
