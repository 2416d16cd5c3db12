"""A run's folder: what was trained how, the log, and where to go on (``docs/reference/run-folder.md``)."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import consilium
from consilium.cases.files import read_json, write_atomically, write_json
from consilium.cases.split import Split, load_splits, save_splits
from consilium.errors import CheckpointError, DatasetError, RunError
from consilium.training.config import Budget, TrainingConfig
from consilium.training.plan import Plan

RUN_FORMAT = "consilium-run"
RUN_VERSION = 1
CONFIG, LOG, SPLIT, CURVES = "config.json", "log.jsonl", "split.json", "curves.png"


@dataclass(frozen=True, kw_only=True)
class Run:
    """An opened run's folder.

    Args:
        folder: Where it lies.
        config: What a person decided.
        plan: What was computed from the data.
        split: Which cases train and which validate.
        budget: How long.
    """

    folder: Path
    config: TrainingConfig
    plan: Plan
    split: Split
    budget: Budget

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the weights depend on, beside the images."""
        content = [
            {k: v for k, v in self.plan.to_json().items() if k not in {"reasons", "memory_bytes"}},
            self.config.to_json(),
            list(self.split.training),
            list(self.split.validation),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def read_log(self) -> list[dict[str, Any]]:
        """Every entry of the log, oldest first; a last line that was cut short is left out."""
        path = self.folder / LOG
        entries = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def write_log(self, entry: Mapping[str, Any]) -> None:
        """Append an entry."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(entry), allow_nan=False) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop what was logged after ``step``: those steps are taken again."""
        kept = [entry for entry in self.read_log() if entry.get("step", 0) <= step]
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept)
        write_atomically(self.folder / LOG, text.encode())


def create_run(folder: Path, config: TrainingConfig, plan: Plan, split: Split, budget: Budget) -> Run:
    """Make the folder of a new run.

    Raises:
        RunError: There is a run already, or other files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder.name}: must be new or empty; it holds files. Go on with --resume, or name another."
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder=folder, config=config, plan=plan, split=split, budget=budget)
    save_splits(folder / SPLIT, [split], seed=config.seed)
    record = {
        "format": RUN_FORMAT,
        "version": RUN_VERSION,
        "config": config.to_json(),
        "budget": budget.to_json(),
        "plan": plan.to_json(),
        "environment": describe_environment(),
    }
    write_json(folder / CONFIG, record)
    return run


def open_run(folder: Path) -> Run:
    """Open a run's folder.

    Raises:
        RunError: It is none, or one of another version.
    """
    try:
        record: dict[str, Any] = read_json(folder / CONFIG)
    except DatasetError as error:
        raise RunError(
            f"{folder.name}: must be a run's folder with {CONFIG}; {error} "
            "Make one with: consilium train DATASET RUN"
        ) from error
    found = (record.get("format"), record.get("version"))
    if found != (RUN_FORMAT, RUN_VERSION):
        raise CheckpointError(
            f"{folder.name}: must be of format {RUN_FORMAT!r} version {RUN_VERSION}; found {found}."
        )
    return Run(
        folder=folder,
        config=TrainingConfig.from_json(record["config"]),
        plan=Plan.from_json(record["plan"]),
        split=load_splits(folder / SPLIT)[0],
        budget=Budget(**record["budget"]),
    )


def describe_environment() -> dict[str, Any]:
    """Versions, machine and commit, for whoever wants to repeat the run; no host or user name."""
    return {
        "consilium": consilium.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """The commit of the package's checkout; None where it is installed without one."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
