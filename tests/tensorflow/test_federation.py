"""Hospitals of both frameworks in one federation: the model of a federation of torch hospitals alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'consilium[tensorflow]'")

import tensorflow as tf

from consilium.cases.dataset import Dataset
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.hospital.local_update import Hospital
from consilium.networks.build import build_network
from consilium.tensorflow.site import TENSORFLOW, get_memory, put_memory
from consilium.tensorflow.state import start_state
from consilium.training.data import PreparedCase, prepare_cases
from consilium.training.loop import recipe_of
from consilium.training.run_folder import Run
from consilium.training.site import TORCH, SiteTask, update_at_site
from consilium.training.start import split_labelled
from consilium.training.state import start_training
from tests.hospital.hospitals import make_dataset, make_settings, open_all, shared_plan
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan

ROUNDS, STEPS = 5, 2
SITES = ("site-a", "site-b", "site-c")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset", cases=6)


class Setting:
    """One plan, three hospitals with two cases each."""

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

    def initial(self, dtype: torch.dtype) -> Parameters:
        network = build_network(self.plan.network_for(bf16=False), seed=5).to(dtype)
        return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}

    def site(self, framework: str, cases: list[PreparedCase], dtype: torch.dtype) -> LocalUpdate:
        network, initial = self.plan.network_for(bf16=False), self.initial(dtype)
        if framework == "torch":
            built = build_network(network, seed=5).to(dtype)
            state = start_training(
                self.plan, self.config, [0.1] * 2, device=torch.device("cpu"), network=built
            )
            state.loss.to(dtype)
        else:
            state = start_state(network, initial, self.config, structures=2)  # type: ignore[assignment]

        def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
            update = update_at_site(
                state,
                parameters,
                cases,
                self.task,
                framework=TORCH if framework == "torch" else TENSORFLOW,
            )
            return SiteResult(
                parameters=update.parameters,
                weight=update.cases,
                cases_by_structure=update.cases_by_structure,
                metrics={"loss": update.loss},
            )

        return train

    def federate(self, frameworks: tuple[str, ...], folder: Path) -> Parameters:
        settings = FederationSettings(
            name="mixed",
            rounds=ROUNDS,
            sites=tuple(SiteEnrolment(name=name, cases=2) for name in SITES),
            quorum=3,
            deadline_s=600.0,
            give_up_s=900.0,
        )
        updates = {
            name: self.site(framework, self.cases[2 * k : 2 * k + 2], torch.float64)
            for k, (name, framework) in enumerate(zip(SITES, frameworks, strict=True))
        }
        return simulate(settings, self.initial(torch.float64), updates, folder)


@pytest.mark.parametrize("network", ["unet3d", "iunet"])
def test_a_mixed_federation_equals_one_of_torch_alone(dataset: Dataset, tmp_path: Path, network: str) -> None:
    tf.config.run_functions_eagerly(network == "iunet")
    try:
        setting = Setting(dataset, network)
        alone = setting.federate(("torch",) * 3, tmp_path / "torch")
        mixed = setting.federate(("torch", "tensorflow", "tensorflow"), tmp_path / "mixed")
    finally:
        tf.config.run_functions_eagerly(False)
    moved = setting.initial(torch.float64)
    assert alone.keys() == mixed.keys() == moved.keys()
    assert max(np.abs(alone[name] - moved[name]).max() for name in alone) > 1e-3
    assert max(np.abs(alone[name] - mixed[name]).max() for name in alone) <= 1e-10


def test_a_site_goes_on_from_what_it_remembers(dataset: Dataset) -> None:
    tf.config.run_functions_eagerly(True)
    try:
        setting = Setting(dataset, "unet3d")
        network, initial = setting.plan.network_for(bf16=False), setting.initial(torch.float64)
        first = start_state(network, initial, setting.config, structures=2)
        update_at_site(first, {}, setting.cases, setting.task, framework=TENSORFLOW)
        second = start_state(network, initial, setting.config, structures=2)
        put_memory(second, get_memory(first))
        second.step = first.step
        received = first.network.get_parameters()
        ours = update_at_site(first, {}, setting.cases, setting.task, framework=TENSORFLOW)
        theirs = update_at_site(second, received, setting.cases, setting.task, framework=TENSORFLOW)
    finally:
        tf.config.run_functions_eagerly(False)
    for name, value in ours.parameters.items():
        assert np.array_equal(value, theirs.parameters[name]), name


def test_a_hospital_of_tensorflow_trains_its_round_as_one_of_torch(tmp_path: Path) -> None:
    both = ("Bladder", "Rectum")
    dataset = make_dataset(tmp_path / "dataset", first=0, cases=4, known=both)
    plan, config = shared_plan(dataset, both)
    settings = make_settings(plan, config, {"a": (4, dict.fromkeys(both, 4))}, rounds=2, steps=2)
    torchs = open_all(settings, {"a": dataset})["a"]
    ours = Hospital("a", torchs.agreement, torchs.training, torchs.hold_out, framework=TENSORFLOW)
    start = torchs.agreement.build_initial()
    task = LocalTask(round_number=0, proximal_mu=0.1)
    tf.config.run_functions_eagerly(True)
    try:
        results = [one(dict(start), round_number=0, task=task) for one in (torchs, ours)]
        # Either goes on from what the other remembers.
        after = LocalTask(round_number=1, memory=results[0].memory)
        results += [one(dict(results[0].parameters), round_number=1, task=after) for one in (torchs, ours)]
    finally:
        tf.config.run_functions_eagerly(False)
    for expected, found in (results[:2], results[2:]):
        assert expected.memory.keys() == found.memory.keys()
        assert expected.weight == found.weight
        assert expected.metrics["loss"] == pytest.approx(found.metrics["loss"], abs=1e-4)
        gaps = np.concatenate(
            [np.abs(expected.parameters[n] - found.parameters[n]).ravel() for n in expected.parameters]
        )
        moved = np.concatenate(
            [np.abs(expected.parameters[n] - start[n]).ravel() for n in expected.parameters]
        )
        assert np.quantile(gaps, 0.95) < 1e-2 * np.quantile(moved, 0.5)
