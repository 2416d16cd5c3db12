"""A training in its own process, so that a test can kill it: ``python -m tests.training.train_program …``."""

import os
import signal
import sys
from pathlib import Path

import torch

from consilium.cases.dataset import open_dataset
from consilium.training.checkpoint import LAST
from consilium.training.loop import train
from consilium.training.run_folder import open_run
from consilium.training.start import prepare_run


def main() -> None:
    """Train the run; with a third argument, kill this process without notice after so many steps."""
    torch.set_num_threads(1)
    dataset, folder = open_dataset(Path(sys.argv[1])), Path(sys.argv[2])
    kill_after = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    run = open_run(folder)
    parts = prepare_run(dataset, run)
    taken = 0

    def asked_after_each_step() -> bool:
        nonlocal taken
        taken += 1
        if kill_after and taken >= kill_after and (folder / LAST).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(run, parts.training, parts.validation, should_stop=asked_after_each_step)


if __name__ == "__main__":
    main()
