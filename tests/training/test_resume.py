"""A training that was killed, interrupted or resumed ends with the same bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from consilium.cases.dataset import Dataset
from consilium.errors import CheckpointError, RunError
from consilium.inference.model import BEST, load_model
from consilium.training.checkpoint import LAST, load_checkpoint, load_optimiser
from consilium.training.loop import output_prior, train
from consilium.training.run_folder import LOG, create_run, open_run
from consilium.training.start import prepare_run, split_labelled, start_run
from consilium.training.state import start_training
from tests.data import REPOSITORY
from tests.training.small_dataset import Budget, small_config, small_dataset, small_plan


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def run_program(dataset: Dataset, folder: Path, *, kill_after: int = 0) -> int:
    command = [sys.executable, "-m", "tests.training.train_program", str(dataset.folder), str(folder)]
    command += [str(kill_after)] if kill_after else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def new_run(dataset: Dataset, folder: Path, **changes: object) -> None:
    config = small_config(dropout=0.1, **changes)
    create_run(folder, config, small_plan(dataset, config), split_labelled(dataset, config), Budget(steps=14))


def same_tensors(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_kill_and_resume_gives_the_bits_of_an_uninterrupted_training(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    new_run(dataset, whole)
    shutil.copytree(whole, killed)
    assert run_program(dataset, whole) == 0
    assert run_program(dataset, killed, kill_after=7) == -9
    assert open_run(killed).read_log()[-1]["step"] < 14
    assert run_program(dataset, killed) == 0
    for name in (LAST, BEST):
        assert same_tensors(whole / name, killed / name), name
    ours, theirs = (
        [{k: v for k, v in entry.items() if k != "elapsed_s"} for entry in open_run(folder).read_log()]
        for folder in (whole, killed)
    )
    assert ours == theirs


def test_stopping_keeps_the_state_and_going_on_changes_no_bit(dataset: Dataset, tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        new_run(dataset, folder)
    run = open_run(folders[0])
    parts = prepare_run(dataset, run)
    train(run, parts.training, parts.validation)
    stopped = open_run(folders[1])
    asked = iter(range(100))
    first = train(stopped, parts.training, parts.validation, should_stop=lambda: next(asked) == 5)
    assert not first.finished
    assert first.state.step == 5
    assert train(stopped, parts.training, parts.validation).finished
    assert same_tensors(folders[0] / LAST, folders[1] / LAST)


def test_a_half_written_log_line_is_dropped(dataset: Dataset, tmp_path: Path) -> None:
    new_run(dataset, tmp_path / "run")
    run = open_run(tmp_path / "run")
    run.write_log({"step": 1})
    with (run.folder / LOG).open("a") as file:
        file.write('{"step": 2, "ep')
    assert run.read_log() == [{"step": 1}]


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    new_run(dataset, tmp_path / "run")
    run = open_run(tmp_path / "run")
    parts = prepare_run(dataset, run)
    train(run, parts.training, parts.validation, should_stop=lambda: True)
    state = start_training(run.plan, run.config, output_prior(parts.training, 2))
    with pytest.raises(CheckpointError, match="same plan, split and seed"):
        load_checkpoint(run.folder / LAST, state, fingerprint="another")
    path = run.folder / LAST
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(path, state, fingerprint=run.fingerprint)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimiser_finds_its_step_where_torch_would_put_it(fused: bool) -> None:
    # "meta" stands for a GPU; no fused optimiser can be built there, so it is called one afterwards.
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimiser = torch.optim.AdamW([weight])
    optimiser.param_groups[0]["fused"] = fused
    slots = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    load_optimiser([("w", weight)], optimiser, {f"w.{slot}": value for slot, value in slots.items()})
    ours = {slot: value.device for slot, value in optimiser.state[weight].items()}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": {0: slots}})
    assert ours == {slot: value.device for slot, value in optimiser.state[weight].items()}


def test_a_folder_with_files_is_not_trained_into(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(RunError, match="new or empty"):
        start_run(dataset, tmp_path, small_config(), Budget(steps=1))


def test_best_model_scores_what_the_log_says(dataset: Dataset, tmp_path: Path) -> None:
    from consilium.training.evaluation import evaluate_cases, mean_dice, summarise

    config = small_config()
    plan, split = small_plan(dataset, config), split_labelled(dataset, config)
    run = create_run(tmp_path / "run", config, plan, split, Budget(steps=60))
    parts = prepare_run(dataset, run)
    outcome = train(run, parts.training, parts.validation)
    model = load_model(run.folder)
    rows = [row for _, found in evaluate_cases(model, dataset, run.split.validation) for row in found]
    assert mean_dice(summarise(rows, model.structures)) == pytest.approx(outcome.best_dice, abs=1e-12)
    assert outcome.best_dice > 0.6
    assert np.isfinite(outcome.best_dice)
