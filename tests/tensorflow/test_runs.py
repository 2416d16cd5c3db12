"""Runs in TensorFlow: recorded, resumed and evaluated like any other."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consilium.cases.dataset import Dataset
from consilium.inference.model import BEST, load_model
from consilium.tensorflow.installed import is_installed
from consilium.training.checkpoint import LAST
from consilium.training.loop import train
from consilium.training.run_folder import create_run, open_run
from consilium.training.start import prepare_run, split_labelled
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs TensorFlow: pip install 'consilium[tensorflow]'"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def new_run(dataset: Dataset, folder: Path) -> None:
    config = small_config(mode="patch", patch_zyx=(8, 12, 12), rate=2e-3, scale_weights=(1.0, 0.5))
    create_run(folder, config, small_plan(dataset, config), split_labelled(dataset, config), Budget(steps=4))


def largest_difference(first: Path, second: Path, prefix: str) -> float:
    one, two = load_file(first / LAST), load_file(second / LAST)
    assert one.keys() == two.keys()
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return max(float(np.abs(one[name] - two[name]).max()) for name in names)


def test_a_run_is_resumed_in_either_framework_and_evaluated_like_any_other(
    dataset: Dataset, tmp_path: Path
) -> None:
    from consilium.tensorflow.runs import build_framework

    whole, parted = tmp_path / "torch", tmp_path / "both"
    new_run(dataset, whole)
    shutil.copytree(whole, parted)
    parts = prepare_run(dataset, open_run(whole))
    train(open_run(whole), parts.training, parts.validation)
    asked = iter([False, False, True])
    first = train(
        open_run(parted),
        parts.training,
        parts.validation,
        should_stop=lambda: next(asked),
        framework=build_framework(),
    )
    assert not first.finished
    assert first.state.step == 2
    second = train(open_run(parted), parts.training, parts.validation, framework=build_framework())
    assert second.finished
    assert largest_difference(whole, parted, "network.") <= 1e-6
    assert largest_difference(whole, parted, "average.") <= 1e-6
    logs = [open_run(folder).read_log() for folder in (whole, parted)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    assert logs[0][-1]["loss"] == pytest.approx(logs[1][-1]["loss"], abs=1e-5)
    assert load_model(parted).structures == load_model(whole).structures
    assert (parted / BEST).is_file()
