"""Every hospital alone, all together, and everything in one place: compared on every hospital's hold-out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.federation.contribution import Contribution, SealedStore, compute_contributions
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings
from consilium.hospital.local_update import Hospital
from consilium.hospital.outcome import Figures, summarise_scores, train_alone
from consilium.training.validation import DiceScores
from consilium.types import Array

FEDERATED, POOLED, ALONE = "federated", "pooled", " alone"
SCORED_ROUNDS = 2
"""Contributions are measured in so many rounds: the middle one and later ones, up to the last."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models side by side.

    Args:
        models: Name -> its figures over the hold-outs of all hospitals together.
        by_site: Model -> hospital -> its figures there; a structure counts only where the hospital knows it.
        structures: In the plan's order.
    """

    models: Mapping[str, Figures]
    by_site: Mapping[str, Mapping[str, Figures]]
    structures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Means only, JSON-able; NaN as None."""

        def plain(figures: Figures) -> dict[str, Any]:
            found = {name: values[0] for name, values in figures.structures.items()}
            return {"mean": figures.mean if figures.mean == figures.mean else None, "structures": found}

        return {
            "models": {name: plain(figures) for name, figures in self.models.items()},
            "by_site": {
                model: {site: plain(figures) for site, figures in sites.items()}
                for model, sites in self.by_site.items()
            },
        }


def train_references(
    hospitals: Mapping[str, Hospital], *, pooled: bool = True, say: Say = lambda text: None
) -> dict[str, Parameters]:
    """Every hospital alone and, where asked for, all their cases in one place, from the same first model.

    Each takes as many steps as one hospital takes in the federation, so as much time where hospitals train
    side by side.
    """
    models = {}
    for name, hospital in hospitals.items():
        say(f"training {name} alone, {hospital.agreement.total_steps} steps")
        models[name + ALONE] = train_alone(hospital)
    if pooled:
        everyone = pool(hospitals)
        say(f"training on all {len(everyone.training)} cases pooled, {everyone.agreement.total_steps} steps")
        models[POOLED] = train_alone(everyone)
    return models


def pool(hospitals: Mapping[str, Hospital]) -> Hospital:
    """All training cases in one place, which a federation is there to avoid: the yardstick."""
    first = next(iter(hospitals.values()))
    cases = [case for name in sorted(hospitals) for case in hospitals[name].training]
    return Hospital(POOLED, first.agreement, cases, ())


def compare(hospitals: Mapping[str, Hospital], models: Mapping[str, Mapping[str, Array]]) -> Comparison:
    """Every model on every hold-out.

    Args:
        hospitals: Those with a hold-out judge.
        models: Name -> parameters.
    """
    judges = {name: hospital for name, hospital in hospitals.items() if hospital.hold_out}
    cases = [case for hospital in judges.values() for case in hospital.hold_out]
    overall, by_site = {}, {}
    for model, parameters in models.items():
        scores = {name: judge.score(parameters) for name, judge in judges.items()}
        overall[model] = summarise_scores(join_scores(list(scores.values())), cases)
        by_site[model] = {name: summarise_scores(scores[name], judges[name].hold_out) for name in judges}
    structures = next(iter(hospitals.values())).agreement.plan.structures
    return Comparison(models=overall, by_site=by_site, structures=structures)


def join_scores(scores: Sequence[DiceScores]) -> DiceScores:
    """Several hospitals' scores as one table."""
    return DiceScores(
        case_ids=tuple(case for one in scores for case in one.case_ids),
        structures=scores[0].structures,
        table=tuple(row for one in scores for row in one.table),
        promised=tuple(row for one in scores for row in one.promised),
    )


def measure_contributions(
    settings: FederationSettings, store: SealedStore, hospitals: Mapping[str, Hospital]
) -> list[Contribution]:
    """Leave-one-out over a few rounds, scored on the hold-outs of all hospitals together."""
    rounds = store.list_rounds()
    picked = sorted(
        {rounds[k] for k in np.linspace(len(rounds) // 2, len(rounds) - 1, SCORED_ROUNDS).astype(int)}
    )

    def score(parameters: Parameters) -> float:
        scores = [hospital.score(parameters) for hospital in hospitals.values() if hospital.hold_out]
        return join_scores(scores).mean

    kept = [store.read_round(number) for number in picked]
    return compute_contributions(kept, [site.name for site in settings.sites], score, settings.heads)
