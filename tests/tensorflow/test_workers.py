"""Two processes on this machine that train one network: the same weights, and a clear end when one dies."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from consilium.cases.dataset import Dataset
from consilium.tensorflow.installed import is_installed
from consilium.training.checkpoint import LAST
from consilium.training.loop import train
from consilium.training.run_folder import create_run, open_run
from consilium.training.start import prepare_run, split_labelled
from tests.data import REPOSITORY
from tests.tensorflow.joined_steps import take_steps
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs TensorFlow: pip install 'consilium[tensorflow]'"
)

PATIENCE_S = 900.0
Note: TypeAlias = Callable[[str, object], None]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def new_run(dataset: Dataset, folder: Path, *, batch: int, steps: int) -> None:
    # Not iunet: on its grid in float32 rounding in another order shows as steps of 2**-16.
    config = small_config(
        network="unet3d", mode="patch", patch_zyx=(8, 12, 12), rate=2e-3, scale_weights=(1.0, 0.5)
    )
    plan = replace(small_plan(dataset, config), batch=batch)
    create_run(folder, config, plan, split_labelled(dataset, config), Budget(steps=steps))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(*command: str) -> list[subprocess.Popen[str]]:
    """The same Python command twice, as the two workers of a ``TF_CONFIG``."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [
        start(
            list(command),
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs


@pytest.mark.parametrize(("precision", "bar"), [("float64", 1e-11), ("float32", 1e-6)])
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_two_workers_take_the_steps_of_one_process(
    framework: str, precision: str, bar: float, tmp_path: Path, record_property: Note
) -> None:
    if framework == "torch" and not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo, which workers on CPUs talk by")
    program = ["-m", "tests.tensorflow.joined_steps", framework, precision, str(tmp_path / "out.npz")]
    if framework == "torch":
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        workers = [start([*launcher, *program])]
    else:
        workers = start_two(*program)
    alone = take_steps(framework, precision)
    finish(workers)
    with np.load(tmp_path / "out.npz") as together:
        assert set(together) == set(alone)
        difference = max(float(np.abs(alone[name] - together[name]).max()) for name in alone)
    record_property("difference", difference)
    assert difference <= bar


@pytest.mark.slow
def test_two_workers_train_the_run_of_one_process_on_the_joined_batch(
    dataset: Dataset, tmp_path: Path, record_property: Note
) -> None:
    from consilium.tensorflow.runs import build_framework

    alone, together = tmp_path / "alone", tmp_path / "together"
    new_run(dataset, alone, batch=2, steps=3)
    new_run(dataset, together, batch=1, steps=3)
    run = open_run(alone)
    parts = prepare_run(dataset, run)
    workers = start_two("-m", "tests.tensorflow.workers_program", str(dataset.folder), str(together), "0")
    train(run, parts.training, parts.validation, framework=build_framework())
    finish(workers)
    one, two = load_file(alone / LAST), load_file(together / LAST)
    assert one.keys() == two.keys()
    # Adam turns a gradient into little more than its sign: where the gradient is hardly above rounding, the
    # weights show that rounding magnified, so there the gradients' mean is what can be compared.
    gaps, told = dict.fromkeys(("weights", "gradients"), 0.0), []
    for name in (n.removeprefix("network.") for n in one if n.startswith("network.")):
        size = np.sqrt(one[f"optimiser.{name}.exp_avg_sq"])
        told.append((size == 0.0) | (size > 1e-6))
        for kind, key in (("weights", f"network.{name}"), ("gradients", f"optimiser.{name}.exp_avg")):
            gap = np.abs(one[key] - two[key])[told[-1] if kind == "weights" else ...]
            gaps[kind] = max(gaps[kind], float(gap.max(initial=0.0)))
    record_property("difference", gaps)
    assert sum(mask.sum() for mask in told) > 0.9 * sum(mask.size for mask in told)
    assert gaps["weights"] <= 1e-6
    assert gaps["gradients"] <= 1e-6
    logs = [open_run(folder).read_log() for folder in (alone, together)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_clearly_and_the_run_goes_on(
    dataset: Dataset, tmp_path: Path, record_property: Note
) -> None:
    folder = tmp_path / "killed"
    new_run(dataset, folder, batch=1, steps=6)
    program = ["-m", "tests.tensorflow.workers_program", str(dataset.folder), str(folder)]
    first, second = start_two(*program, "4")
    output, _ = first.communicate(timeout=PATIENCE_S)
    second.communicate(timeout=60)
    assert first.returncode == 1, output
    record_property("message", output[-600:])
    assert "one of them is gone" in output
    assert "--resume" in output
    assert "Traceback" not in output
    finish(start_two(*program, "0"))
    assert open_run(folder).read_log()[-1]["step"] == 6
