"""Hospitals of either framework under one plan in float64, in one process or over the engine."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from consilium.cases.dataset import Dataset, open_dataset
from consilium.federation.federation_file import read_site_file
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.networks.build import build_network
from consilium.training.data import PreparedCase, prepare_cases
from consilium.training.loop import recipe_of
from consilium.training.run_folder import Run
from consilium.training.site import TORCH, SiteFramework, SiteTask, update_at_site
from consilium.training.start import split_labelled
from consilium.training.state import start_training
from tests.training.small_dataset import Budget, small_config, small_plan

ROUNDS, STEPS = 5, 2
SITES = ("site-a", "site-b", "site-c")
ALL_TORCH, MIXED = ("torch",) * 3, ("torch", "tensorflow", "tensorflow")
SETTINGS = FederationSettings(
    name="mixed",
    rounds=ROUNDS,
    sites=tuple(SiteEnrolment(name=name, cases=2) for name in SITES),
    quorum=3,
    deadline_s=600.0,
    give_up_s=900.0,
)


class Setting:
    """One plan, three hospitals with two cases each of a dataset of six."""

    def __init__(self, dataset: Dataset, network: str) -> None:
        self.config = small_config(
            network=network, mode="patch", patch_zyx=(8, 12, 12), scale_weights=(1.0, 0.5), average=0.0
        )
        self.plan = small_plan(dataset, self.config)
        split = split_labelled(dataset, self.config)
        run = Run(
            folder=Path("nowhere"), config=self.config, plan=self.plan, split=split, budget=Budget(steps=9)
        )
        self.cases = prepare_cases(dataset, dataset.case_ids, self.plan.structures, self.plan.preprocessing)
        self.task = SiteTask(
            plan=self.plan,
            recipe=recipe_of(run),
            config=self.config,
            steps=STEPS,
            total_steps=ROUNDS * STEPS,
        )

    def initial(self) -> Parameters:
        """The first model."""
        network = build_network(self.plan.network_for(bf16=False), seed=5).double()
        return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}

    def cases_of(self, site: str) -> list[PreparedCase]:
        """A site's cases."""
        start = 2 * SITES.index(site)
        return list(self.cases[start : start + 2])

    def start(self, framework: str) -> tuple[Any, SiteFramework]:
        """A state before its first step, and what trains it."""
        network = self.plan.network_for(bf16=False)
        if framework == "tensorflow":
            from consilium.tensorflow.site import TENSORFLOW
            from consilium.tensorflow.state import start_state

            return start_state(network, self.initial(), self.config, structures=2), TENSORFLOW
        built = build_network(network, seed=5).double()
        state = start_training(self.plan, self.config, [0.1] * 2, device=torch.device("cpu"), network=built)
        state.loss.double()
        return state, TORCH

    def update_of(self, site: str, framework: str) -> LocalUpdate:
        """A hospital's training; what it remembers lies at the site between two rounds."""
        (state, trainer), cases = self.start(framework), self.cases_of(site)

        def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
            trainer.put_memory(state, task.memory)
            state.step = round_number * STEPS
            update = update_at_site(state, parameters, cases, self.task, framework=trainer)
            return SiteResult(
                parameters=update.parameters,
                weight=update.cases,
                metrics={"loss": update.loss},
                memory=trainer.get_memory(state),
            )

        return train

    def federate(self, frameworks: Iterable[str], folder: Path) -> Parameters:
        """The model that the federation ends with, in one process."""
        updates = {
            name: self.update_of(name, framework) for name, framework in zip(SITES, frameworks, strict=True)
        }
        return simulate(SETTINGS, self.initial(), updates, folder)


def build(site_file: Path) -> LocalUpdate:
    """The training that the site files of the engine's test name; ``[hospital]`` says data and framework."""
    site, _, _ = read_site_file(site_file)
    setting = Setting(open_dataset(Path(site.hospital["dataset"])), site.hospital["network"])
    update = setting.update_of(site.name, site.hospital["framework"])
    (site_file.parent / "loaded").write_text(" ".join({"torch", "tensorflow"} & set(sys.modules)))
    return update
