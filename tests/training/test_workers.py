"""Several processes train as one: the same weights, and a clear end when one of them dies."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, RunError
from consilium.training.augment import Augmentation
from consilium.training.checkpoint import LAST
from consilium.training.loop import train
from consilium.training.run_folder import create_run, open_run
from consilium.training.start import prepare_run, split_labelled
from consilium.training.workers import Workers, join_workers
from tests.data import REPOSITORY
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo, which workers on CPUs talk by"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def new_run(dataset: Dataset, folder: Path, *, batch: int, steps: int) -> None:
    config = small_config(
        mode="patch",
        rate=2e-3,
        patch_zyx=(8, 12, 12),
        network="iunet",
        scale_weights=(1.0, 0.5),
        channels=(8, 16),
        augmentation=Augmentation(),
    )
    plan = replace(small_plan(dataset, config), batch=batch)
    create_run(folder, config, plan, split_labelled(dataset, config), Budget(steps=steps))


def run_two_workers(dataset: Dataset, folder: Path, *, kill_after: int = 0) -> tuple[int, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "tests.training.workers_program", str(dataset.folder), str(folder), str(kill_after)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


def largest_difference(first: Path, second: Path) -> float:
    one, two = load_file(first / LAST), load_file(second / LAST)
    names = [name for name in one if name.startswith("network.")]
    assert names
    return max(float((one[name] - two[name]).abs().max()) for name in names)


def test_two_workers_equal_one_process_on_the_joined_batch(dataset: Dataset, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    new_run(dataset, alone, batch=2, steps=3)
    new_run(dataset, together, batch=1, steps=3)
    run = open_run(alone)
    parts = prepare_run(dataset, run)
    train(run, parts.training, parts.validation)
    code, output = run_two_workers(dataset, together)
    assert code == 0, output
    # Rounding in float32, which three steps of Adam carry on: 1.1e-6 was measured.
    assert largest_difference(alone, together) <= 2e-6
    assert [entry["step"] for entry in open_run(together).read_log()] == [
        entry["step"] for entry in run.read_log()
    ]


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_clearly_and_the_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    new_run(dataset, whole, batch=1, steps=6)
    shutil.copytree(whole, killed)
    assert run_two_workers(dataset, whole)[0] == 0
    code, output = run_two_workers(dataset, killed, kill_after=4)
    assert code != 0
    assert "--resume" in output
    code, output = run_two_workers(dataset, killed)
    assert code == 0, output
    assert open_run(killed).read_log()[-1]["step"] == 6
    assert largest_difference(whole, killed) <= 2e-6


def test_a_worker_that_is_gone_is_said_with_what_to_do() -> None:
    def fails() -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    with pytest.raises(RunError, match=r"one of them is gone.*--resume"):
        Workers(rank=0, count=2).together(fails)


def test_half_an_environment_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="torchrun --nproc-per-node"):
        join_workers()


def test_one_worker_changes_nothing() -> None:
    sums = torch.ones(2, 3, requires_grad=True)
    workers = Workers()
    assert workers.join(sums) is sums
    assert workers.agree([1.0, 0.5]) == [1.0, 0.5]
    network = torch.nn.Linear(1, 1)
    assert workers.share_network(network, some_unused=False) is network
