"""Runs in TensorFlow: recorded, resumed and evaluated like any other, by one process or several."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
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
from tests.data import REPOSITORY
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs TensorFlow: pip install 'consilium[tensorflow]'"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def new_run(dataset: Dataset, folder: Path, *, batch: int = 1, steps: int = 4) -> None:
    config = small_config(mode="patch", patch_zyx=(8, 12, 12), rate=2e-3, scale_weights=(1.0, 0.5))
    plan = replace(small_plan(dataset, config), batch=batch)
    create_run(folder, config, plan, split_labelled(dataset, config), Budget(steps=steps))


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


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(dataset: Dataset, folder: Path, *, kill_after: int = 0) -> list[subprocess.Popen[str]]:
    """Two `consilium train`s that a TF_CONFIG each makes one; the second dies after so many steps."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = [sys.executable, "-m", "tests.tensorflow.workers_program", str(dataset.folder), str(folder)]
    return [
        subprocess.Popen(
            [*command, str(kill_after)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


@pytest.mark.slow
def test_two_workers_equal_one_process_on_the_joined_batch(dataset: Dataset, tmp_path: Path) -> None:
    """Not reached yet: 7e-5 was measured against torch in one process, and not explained."""
    from consilium.tensorflow.runs import build_framework

    alone, together = tmp_path / "alone", tmp_path / "together"
    new_run(dataset, alone, batch=2, steps=3)
    new_run(dataset, together, batch=1, steps=3)
    run = open_run(alone)
    parts = prepare_run(dataset, run)
    train(run, parts.training, parts.validation, framework=build_framework())
    workers = start_workers(dataset, together)
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert largest_difference(alone, together, "network.") <= 2e-6


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_clearly_and_the_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    new_run(dataset, folder, steps=6)
    workers = start_workers(dataset, folder, kill_after=4)
    output = workers[0].communicate(timeout=600)[0]
    assert workers[0].returncode == 1, output
    assert "--resume" in output
    workers[1].wait(timeout=60)
    workers = start_workers(dataset, folder)
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert open_run(folder).read_log()[-1]["step"] == 6
