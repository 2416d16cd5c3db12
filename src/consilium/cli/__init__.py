"""The command line: one file per verb; the only place that wires, prints and exits."""

import sys

from consilium.cli.verbs import build_command


def main() -> None:
    """Entry point of ``consilium``: run one verb, turn errors into one clear message and an exit code.

    Exit codes: 0 done, 1 the data or the run failed, 2 misuse, 130 interrupted.
    """
    from consilium.cli.console import run_verb

    sys.exit(run_verb(build_command(), sys.argv[1:]))
