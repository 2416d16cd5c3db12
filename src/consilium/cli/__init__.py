"""The command line: one file per verb; the only place that wires, prints and exits."""

import os
import sys

from consilium.cli.verbs import build_command


def main() -> None:
    """Entry point of ``consilium``: run one verb, turn errors into one clear message and an exit code.

    Exit codes: 0 done, 1 the data or the run failed, 2 misuse, 130 interrupted.
    """
    from consilium.cli.console import run_verb

    # Before anything loads OpenMP: threads that spin while they wait make training 5 to 10 times slower on a
    # machine that does other work beside.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    sys.exit(run_verb(build_command(), sys.argv[1:]))
