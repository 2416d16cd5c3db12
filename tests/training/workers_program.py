"""A worker of a training, started by torchrun: ``python -m tests.training.workers_program DATASET RUN …``."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from consilium.cases.dataset import open_dataset
from consilium.cli.console import run_verb, stop_on_interrupt
from consilium.errors import RunError
from consilium.training.framework import TORCH_RUNS
from consilium.training.loop import train
from consilium.training.run_folder import open_run
from consilium.training.start import prepare_run
from consilium.training.workers import join_workers, leave_workers


def work(dataset: Path, folder: Path, kill_after: int) -> None:
    """Train the run with the other workers; the second one dies without notice after so many steps."""
    torch.set_num_threads(1)
    workers = join_workers()
    run = open_run(folder)
    parts = prepare_run(open_dataset(dataset), run)
    taken = 0
    # As `consilium train` does: torchrun ends the other workers by SIGTERM.
    with stop_on_interrupt() as asked_from_outside:

        def asked_after_each_step() -> bool:
            nonlocal taken
            taken += 1
            if kill_after and taken > kill_after and not workers.leads:
                os.kill(os.getpid(), signal.SIGKILL)
            return asked_from_outside()

        outcome = train(
            run,
            parts.training,
            parts.validation,
            should_stop=asked_after_each_step,
            framework=replace(TORCH_RUNS, workers=workers),
        )
    if not outcome.finished:
        raise RunError("Interrupted; go on with --resume.")
    leave_workers()


class Command:
    """What `run_verb` runs: so errors become the message and the exit code of the command line."""

    def main(self, **_: object) -> None:
        kill_after = int(sys.argv[3]) if len(sys.argv) > 3 else 0
        work(Path(sys.argv[1]), Path(sys.argv[2]), kill_after)


if __name__ == "__main__":
    sys.exit(run_verb(Command(), []))
