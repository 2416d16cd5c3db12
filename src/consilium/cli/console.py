"""What every verb shares: the console, the progress bar, and the edge where errors become messages."""

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from consilium.errors import ConfigurationError, ConsiliumError
from consilium.pages.numbers import format_number
from consilium.types import Progress

console = Console()
error_console = Console(stderr=True)

INTERRUPTED = 130

# typer may carry its own copy of click: its base error is found through a name that typer exports.
UsageProblem: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ask to stop at the first Ctrl-C or SIGTERM, after the step in progress; the second interrupts."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `consilium.types.Progress` that draws one line per kind of work, with the time left.

    Where the output is no terminal it draws nothing but the last state of each line.

    Example:
        >>> with progress_bar() as progress:
        ...     progress("importing", 1, 1)  # doctest: +SKIP
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=error_console) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield progress


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers align to the right, cells are never read as markup."""
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        # What does not fit is wrapped: FemoralHead_L and FemoralHead_R must not both read FemoralHea….
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return str(value)


def run_verb(command: Any, arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code; every error becomes one message on stderr."""
    try:
        result = command.main(args=list(arguments), prog_name="consilium", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        _say("Interrupted. What was finished is kept; the same command goes on from there.")
        return INTERRUPTED
    except typer.Exit as end:
        return end.exit_code
    except UsageProblem as error:
        error.show()
        return int(error.exit_code)
    except ConfigurationError as error:
        _say(str(error))
        return 2
    except ConsiliumError as error:
        _say(str(error))
        return 1
    except OSError as error:
        return _say_system_error(error)
    except Exception as error:  # noqa: BLE001 - the edge of every verb
        _say(f"This is a bug in consilium ({type(error).__name__}). What follows helps whoever mends it:")
        traceback.print_exc(file=sys.stderr)
        return 1


def _say_system_error(error: OSError) -> int:
    if error.errno == errno.ENOSPC:
        _say("The disk is full. What was finished is kept: free some space and run the same command again.")
    else:
        _say(f"The system refused a file operation: {error.strerror or type(error).__name__}.")
        traceback.print_exc(limit=-3, file=sys.stderr)
    return 1


def _say(message: str) -> None:
    error_console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def fail(message: str) -> typer.Exit:
    """Print ``message`` as an error; raise what is returned to end with exit code 1."""
    _say(message)
    return typer.Exit(1)
