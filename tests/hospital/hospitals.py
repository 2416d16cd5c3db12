"""Small hospitals whose images hold a bright and a dark ball, each contouring what it likes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from consilium.cases.dataset import Dataset, create_dataset
from consilium.federation.settings import FederationSettings, SiteEnrolment, StrategyChoice
from consilium.hospital.agreement import head_map, plan_table
from consilium.hospital.local_update import Hospital, HospitalData, prepare_hospital
from consilium.training.config import TrainingConfig
from consilium.training.plan import Plan
from tests.training.small_dataset import small_case, small_config, small_plan


def make_dataset(folder: Path, *, first: int, cases: int, known: tuple[str, ...]) -> Dataset:
    """Patients ``first`` to ``first + cases - 1``, of whom ``known`` is contoured."""
    # A fixed key: case ids decide the order of training.
    (folder / "private").mkdir(parents=True, mode=0o700)
    (folder / "private" / "key").write_text("5a" * 32)
    dataset = create_dataset(folder)
    for number in range(first, first + cases):
        dataset.add(small_case(number, known=known))
    return dataset


def shared_plan(
    dataset: Dataset, structures: tuple[str, ...], **changes: object
) -> tuple[Plan, TrainingConfig]:
    """A plan for all hospitals, made from one dataset's images."""
    config = replace(small_config(**changes), average=0.0)
    plan = small_plan(dataset, config)
    heads = replace(plan.network, out_channels=len(structures))
    mirror = tuple(range(len(structures)))
    return replace(plan, structures=structures, network=heads, mirror=mirror), config


def make_settings(
    plan: Plan,
    config: TrainingConfig,
    sites: Mapping[str, tuple[int, Mapping[str, int]]],
    *,
    rounds: int,
    steps: int,
    prior: float = 0.01,
    strategy: StrategyChoice | None = None,
    **changes: object,
) -> FederationSettings:
    """A federation of ``sites``: name -> (cases, structure -> cases)."""
    training = {
        "steps_per_round": steps,
        "validate_every": 0,
        "config": {k: v for k, v in config.to_json().items() if v is not None},
        "plan": plan_table(plan),
        "prior": [prior] * len(plan.structures),
    }
    enrolments = [SiteEnrolment(name=n, cases=c, structures=dict(s)) for n, (c, s) in sites.items()]
    return FederationSettings(
        name="balls",
        rounds=rounds,
        sites=tuple(enrolments),
        heads=head_map(plan),
        strategy=strategy or StrategyChoice(),
        training=training,
        **changes,  # type: ignore[arg-type]
    )


def open_all(
    settings: FederationSettings, datasets: Mapping[str, Dataset], **data: object
) -> dict[str, Hospital]:
    """Every dataset as a hospital of the federation."""
    return {
        name: prepare_hospital(name, settings, dataset, HospitalData(dataset="here", **data))  # type: ignore[arg-type]
        for name, dataset in datasets.items()
    }


def same_bits(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether two models are equal byte for byte."""
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )
