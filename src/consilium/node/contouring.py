"""The process beside the node that contours: its memory, its crashes and its Python lock are its own."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from consilium.errors import ConsiliumError, RunError


@dataclass(frozen=True, kw_only=True)
class SeriesFiles:
    """Files of one series and of the structure sets drawn on it; names say nothing."""

    images: tuple[Path, ...]
    structure_sets: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a series.

    Args:
        message: "" if the contours are written; else why not, without identifiers.
        lasting: Whether another try would end the same way: the series itself cannot be used.
    """

    message: str = ""
    lasting: bool = False


Contourer = Callable[[SeriesFiles, Path], Outcome]
"""``contour(files, out) -> outcome``: writes one RTSTRUCT or SEG to ``out``; raises nothing."""


class Contouring(Protocol):
    """How a node has a series contoured."""

    def contour(self, files: SeriesFiles, out: Path, stop: threading.Event) -> Outcome | None:
        """Contour a series; None if ``stop`` was set before the outcome was known."""

    def stop(self) -> None:
        """Give back what it holds."""


class ContourProcess:
    """A child process that contours one series at a time; started when it is needed, again if it died.

    Args:
        build: Makes the contourer, in the child: loads the model once. Where it raises a `ConsiliumError`,
            that is the outcome, and it is called again for the next series. A module's function, or a partial
            of one, since it is sent there by name.
    """

    def __init__(self, build: Callable[[], Contourer]) -> None:
        self._build = build
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None

    def contour(self, files: SeriesFiles, out: Path, stop: threading.Event) -> Outcome | None:
        """Contour a series.

        Returns:
            The outcome; None if ``stop`` was set before it was known.
        """
        pipe = self._pipe if self._process is not None and self._process.is_alive() else self._start()
        assert pipe is not None
        try:
            pipe.send((files, out))
            while not pipe.poll(0.2):
                if stop.is_set():
                    return None
            outcome: Outcome = pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            return Outcome(
                message=f"the process that contours ended without an answer (code {code}). Often the memory "
                "was not enough: see what the system's log says."
            )
        return outcome

    def stop(self) -> None:
        """End the child."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(5)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._build), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        return ours


def _serve(pipe: Connection, build: Callable[[], Contourer]) -> None:
    """In the child: contour what comes, until the parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RunError("contouring: runs beside a node; there is none.")
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    contour: Contourer | None = None
    while True:
        try:
            files, out = pipe.recv()
        except EOFError:
            return
        try:
            contour = contour or build()
        except ConsiliumError as fault:
            pipe.send(Outcome(message=str(fault)))
        else:
            pipe.send(contour(files, out))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
