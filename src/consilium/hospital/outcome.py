"""What a hospital got: its own model, the common one and that fine-tuned at home, judged on its hold-out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.errors import ConfigurationError, DataError
from consilium.federation.local import LocalTask
from consilium.federation.parameters import Parameters
from consilium.federation.reciprocity import CHOICES, choose_model
from consilium.hospital.agreement import Agreement
from consilium.hospital.local_update import Hospital
from consilium.inference.model import MODEL_SUFFIX, save_model
from consilium.metrics.intervals import Interval, bootstrap_mean
from consilium.training.data import PreparedCase
from consilium.training.loop import build_recipe
from consilium.training.site import SiteTask, put_memory, put_parameters, update_at_site
from consilium.training.state import start_training
from consilium.training.validation import DiceScores
from consilium.types import Array, Progress, no_progress

PERSONAL_RATE = 0.2
"""Fine-tuning at home starts at this share of the training's highest rate."""

SEED = 20261125
LEAST_HOLD_OUT = 2


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model on one hospital's hold-out; means and intervals over patients, nothing of a single one.

    Args:
        mean: Mean over the structures that the hospital knows of their mean Dice.
        structures: Structure -> (mean, low, high); the interval is NaN with fewer than two patients.
        patients: Structure -> number of patients behind it.
        overall: (mean, low, high) of the patients' own mean Dice.
    """

    mean: float
    structures: Mapping[str, tuple[float, float, float]]
    patients: Mapping[str, int]
    overall: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a hospital got out of a federation.

    Args:
        site: Who.
        figures: ``local``, ``global`` and ``personalised`` -> its figures.
        given: The best of the three on the hold-out, which is kept as ``given.consilium``.
        training_cases: Number of cases that trained.
        hold_out_cases: Number of cases that judged.
    """

    site: str
    figures: Mapping[str, Figures]
    given: str
    training_cases: int
    hold_out_cases: int

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice of the three models."""
        return {name: figures.mean for name, figures in self.figures.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object but for NaN, which JSON writes as null."""
        record: dict[str, Any] = _without_nan(asdict(self))
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Outcome":
        """The inverse of `to_json`.

        Raises:
            DataError: It is no outcome.
        """
        try:
            figures = {name: _read_figures(found) for name, found in record["figures"].items()}
            if set(figures) != set(CHOICES) or record["given"] not in CHOICES:
                raise ValueError("three models, one of them given")
            return cls(
                site=str(record["site"]),
                figures=figures,
                given=record["given"],
                training_cases=int(record["training_cases"]),
                hold_out_cases=int(record["hold_out_cases"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise DataError(f"outcome: must be what consilium federation conclude wrote; {fault}.") from fault


def train_alone(
    hospital: Hospital, *, start: Parameters | None = None, rounds: int | None = None
) -> Parameters:
    """What the hospital would have without the others: as many steps, from the same first model.

    A federation of this site alone, so the same code and the same bits as `consilium train`; everything is
    trained, also where the site enrolled with its heads alone: there is no trunk of others to spare.
    """
    agreed = hospital.agreement
    parameters = dict(start or agreed.build_initial())
    memory: Parameters = {}
    for number in range(agreed.rounds if rounds is None else rounds):
        task = LocalTask(round_number=number, structures=agreed.plan.structures, memory=memory)
        result = hospital.train_round(parameters, round_number=number, task=task)
        parameters, memory = result.parameters, result.memory
    return parameters


def personalise(
    hospital: Hospital, common: Mapping[str, Array], *, progress: Progress = no_progress
) -> Parameters:
    """The common model, fine-tuned on this hospital's own training cases at a low rate."""
    agreed = hospital.agreement
    config = replace(
        agreed.config,
        rate=agreed.config.rate * PERSONAL_RATE,
        head_rate=agreed.config.head_rate * PERSONAL_RATE,
    )
    state = start_training(agreed.plan, config, list(agreed.prior))
    put_parameters(state, hospital.complete(common))
    put_memory(state, {})
    recipe = replace(build_recipe(agreed.plan, config, hospital.training), seed=config.seed + 1)
    steps = agreed.personal_steps
    task = SiteTask(plan=agreed.plan, recipe=recipe, config=config, steps=steps, total_steps=steps)
    return update_at_site(state, {}, hospital.training, task, progress=progress).parameters


def summarise_scores(scores: DiceScores, cases: Sequence[PreparedCase]) -> Figures:
    """Means with 95 % bootstrap intervals over patients."""
    patients = [case.patient_id for case in cases]
    rng = np.random.default_rng(SEED)
    table = np.array(scores.table, float).reshape(len(cases), len(scores.structures))
    structures, counts = {}, {}
    for s, name in enumerate(scores.structures):
        found = bootstrap_mean(table[:, s], rng, patients=patients)
        if found.count:
            structures[name], counts[name] = _ends(found), found.count
    known = ~np.isnan(table).all(axis=1)
    own = [float(np.nanmean(row)) if ok else float("nan") for row, ok in zip(table, known, strict=True)]
    return Figures(
        mean=scores.mean,
        structures=structures,
        patients=counts,
        overall=_ends(bootstrap_mean(own, rng, patients=patients)),
    )


def judge(hospital: Hospital, parameters: Mapping[str, Array]) -> Figures:
    """A model's figures on this hospital's hold-out.

    Raises:
        ConfigurationError: There is no hold-out.
    """
    if len(hospital.hold_out) < LEAST_HOLD_OUT:
        raise ConfigurationError(
            f"site {hospital.name}: at least {LEAST_HOLD_OUT} cases must be held out to judge models; found "
            f"{len(hospital.hold_out)}. Raise hold_out in [hospital]."
        )
    return summarise_scores(hospital.score(parameters), hospital.hold_out)


def conclude(
    hospital: Hospital,
    common: Mapping[str, Array],
    folder: Path,
    *,
    local: Parameters | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Train the two other models, judge all three, keep them and the best of them.

    Args:
        hospital: Whose.
        common: The federation's final model, with the hospital's own local parameters where it has some.
        folder: Where ``local``, ``global``, ``personalised`` and ``given`` are written as model files.
        local: What the hospital would have alone, where it is trained already; see `train_alone`.
        progress: Told while it trains.

    Returns:
        The outcome; what is given is never worse than the hospital's own model on its hold-out.
    """
    models = {
        "local": local if local is not None else train_alone(hospital),
        "global": hospital.complete(common),
        "personalised": personalise(hospital, common, progress=progress),
    }
    figures = {name: judge(hospital, models[name]) for name in CHOICES}
    given = choose_model({name: found.mean for name, found in figures.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for name, parameters in {**models, "given": models[given]}.items():
        shown = figures[given if name == "given" else name]
        note = {"which": name, "site": hospital.name, "hold_out_dice": _without_nan(asdict(shown))}
        save_parameters(folder / f"{name}{MODEL_SUFFIX}", hospital.agreement, parameters, note)
    return Outcome(
        site=hospital.name,
        figures=figures,
        given=given,
        training_cases=len(hospital.training),
        hold_out_cases=len(hospital.hold_out),
    )


def save_parameters(
    path: Path, agreement: Agreement, parameters: Mapping[str, Array], note: Mapping[str, Any]
) -> str:
    """Parameters as a model file that `consilium contour` takes; returns its digest."""
    card = {
        "use": "Proposes contours that a person must look at and correct. No medical device.",
        "structures": list(agreement.plan.structures),
        "spacing_zyx_mm": list(agreement.plan.preprocessing.spacing_zyx_mm),
        "seed": agreement.config.seed,
        "steps": agreement.total_steps,
        **note,
    }
    weights = {name: torch.from_numpy(np.array(value)) for name, value in parameters.items()}
    return save_model(path, agreement.plan.describe_model(card), weights)


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _read_figures(record: Mapping[str, Any]) -> Figures:
    def three(values: Sequence[float | None]) -> tuple[float, float, float]:
        a, b, c = (float("nan") if v is None else float(v) for v in values)
        return a, b, c

    mean = record["mean"]
    return Figures(
        mean=float("nan") if mean is None else float(mean),
        structures={str(name): three(values) for name, values in record["structures"].items()},
        patients={str(name): int(count) for name, count in record["patients"].items()},
        overall=three(record["overall"]),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
