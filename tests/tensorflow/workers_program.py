"""A worker of a training in TensorFlow, which TF_CONFIG makes one of several."""

import os
import signal
import sys
from pathlib import Path

from consilium.cases.dataset import open_dataset
from consilium.cli.console import run_verb, stop_on_interrupt
from consilium.errors import RunError
from consilium.tensorflow.runs import build_framework
from consilium.tensorflow.workers import join_tensorflow_workers
from consilium.training.loop import train
from consilium.training.run_folder import open_run
from consilium.training.start import prepare_run


class Command:
    """What `run_verb` runs: so errors become the message and the exit code of the command line."""

    def main(self, **_: object) -> None:
        dataset, folder, kill_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        framework = build_framework(join_tensorflow_workers())
        run = open_run(folder)
        parts = prepare_run(open_dataset(dataset), run)
        taken = 0
        with stop_on_interrupt() as asked:

            def asked_after_each_step() -> bool:
                nonlocal taken
                taken += 1
                if kill_after and taken > kill_after and not framework.workers.leads:
                    os.kill(os.getpid(), signal.SIGKILL)
                return asked()

            outcome = train(
                run,
                parts.training,
                parts.validation,
                should_stop=asked_after_each_step,
                framework=framework,
            )
        if not outcome.finished:
            raise RunError("Interrupted; go on with --resume.")


if __name__ == "__main__":
    sys.exit(run_verb(Command(), []))
