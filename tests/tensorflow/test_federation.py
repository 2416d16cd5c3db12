"""Hospitals of both frameworks in one federation: the model of a federation of torch hospitals alone."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'consilium[tensorflow]'")

import tensorflow as tf

from consilium.cases.dataset import Dataset
from consilium.federation.local import LocalTask
from consilium.hospital.local_update import Hospital
from consilium.tensorflow.site import TENSORFLOW, get_memory, put_memory
from consilium.training.site import update_at_site
from tests.hospital.hospitals import make_dataset, make_settings, open_all, shared_plan
from tests.tensorflow.hospitals import ALL_TORCH, MIXED, Setting
from tests.training.small_dataset import small_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset", cases=6)


@pytest.mark.parametrize("network", ["unet3d", "iunet"])
def test_a_mixed_federation_equals_one_of_torch_alone(dataset: Dataset, tmp_path: Path, network: str) -> None:
    tf.config.run_functions_eagerly(network == "iunet")
    try:
        setting = Setting(dataset, network)
        alone = setting.federate(ALL_TORCH, tmp_path / "torch")
        mixed = setting.federate(MIXED, tmp_path / "mixed")
    finally:
        tf.config.run_functions_eagerly(False)
    moved = setting.initial()
    assert alone.keys() == mixed.keys() == moved.keys()
    assert max(np.abs(alone[name] - moved[name]).max() for name in alone) > 1e-3
    assert max(np.abs(alone[name] - mixed[name]).max() for name in alone) <= 1e-10


def test_a_site_goes_on_from_what_it_remembers(dataset: Dataset) -> None:
    tf.config.run_functions_eagerly(True)
    try:
        setting = Setting(dataset, "unet3d")
        first, _ = setting.start("tensorflow")
        update_at_site(first, {}, setting.cases, setting.task, framework=TENSORFLOW)
        second, _ = setting.start("tensorflow")
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
