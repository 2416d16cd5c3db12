"""The audit log: one line per event, chained by hashes; each round is sealed with a head that every site
keeps.
"""

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.errors import FederationError
from consilium.federation.durable import append_line, sync_folder

GENESIS = "0" * 64


@dataclass(frozen=True)
class Seal:
    """The end of one round in the log.

    Args:
        round_number: The committed round.
        events_digest: Hash of the last line before the seal; it covers all lines before it.
        model_digest: Digest of the committed model.
        head: Hash of the three and of the previous head.
    """

    round_number: int
    events_digest: str
    model_digest: str
    head: str


def compute_head(previous: str, round_number: int, events_digest: str, model_digest: str) -> str:
    """The head after one more round; a site repeats this to see that its own head is a part of the log's
    past.
    """
    return hashlib.sha256(f"{previous} {round_number} {events_digest} {model_digest}".encode()).hexdigest()


def verify_extension(head: str, steps: list[tuple[int, str, str]]) -> str:
    """Follow rounds from ``head`` on.

    Args:
        head: The head a site keeps.
        steps: (round, events digest, model digest) of every later round.

    Returns:
        The head after the last step; the coordinator must name the same.
    """
    for round_number, events_digest, model_digest in steps:
        head = compute_head(head, round_number, events_digest, model_digest)
    return head


class AuditLog:
    """An append-only file of JSON lines, each with the hash of the one before.

    Args:
        path: The file; created when absent. A last line torn by a crash is dropped, anything else that does
            not fit is damage.
        write: False to look at it only: the file is left as it is, and may be absent.

    Raises:
        FederationError: If a line was changed, removed or added.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self._path = path
        self._write = write
        self._last = GENESIS
        self._lock = threading.RLock()
        self.seals: list[Seal] = []
        self._load()

    def append(self, event: str, round_number: int, **details: Any) -> None:
        """Write one event; it is durable with the next seal.

        Raises:
            FederationError: If it cannot be written, e.g. on a full disk; the log is as before.
        """
        if not self._write:
            raise TypeError("This log was opened to look at it only.")
        with self._lock:
            record = {"event": event, "round": round_number, **details, "previous": self._last}
            line = json.dumps(record, sort_keys=True, separators=(",", ":"))
            try:
                append_line(self._path, line, sync=event == "sealed")
            except OSError as fault:
                raise FederationError(
                    f"audit log: the event {event} could not be written ({fault.strerror}). Free space there "
                    "and resume: nothing that was committed is lost."
                ) from fault
            self._last = _hash(line)

    def seal(self, round_number: int, model_digest: str) -> Seal:
        """Close a round in the log, durably; a round already sealed with the same model is left as it is.

        Raises:
            FederationError: If the round is not the next one, or was sealed with another model.
        """
        if round_number < len(self.seals):
            old = self.seals[round_number]
            if old.model_digest != model_digest:
                raise FederationError(
                    f"audit log: round {round_number} is sealed with another model. Keep both and ask."
                )
            return old
        if round_number != len(self.seals):
            raise FederationError(
                f"audit log: the next round must be {len(self.seals)}; found {round_number}. Lines are "
                "missing."
            )
        with self._lock:
            seal = self._make_seal(round_number, self._last, model_digest)
            details = {"events_digest": seal.events_digest, "model_digest": model_digest, "head": seal.head}
            self.append("sealed", round_number, **details)
            self.seals.append(seal)
        return seal

    @property
    def head(self) -> str:
        """The head after the last sealed round."""
        return self.seals[-1].head if self.seals else GENESIS

    def head_after(self, round_number: int) -> str | None:
        """The head after ``round_number`` (-1: before the first); None if the log does not reach so far."""
        if round_number == -1:
            return GENESIS
        return self.seals[round_number].head if 0 <= round_number < len(self.seals) else None

    def list_steps(self, after_round: int) -> list[tuple[int, str, str]]:
        """What a site that keeps the head of ``after_round`` (-1: none) needs to follow the log to its
        end.
        """
        return [(s.round_number, s.events_digest, s.model_digest) for s in self.seals[after_round + 1 :]]

    def _make_seal(self, round_number: int, events_digest: str, model_digest: str) -> Seal:
        head = compute_head(self.head, round_number, events_digest, model_digest)
        return Seal(round_number, events_digest, model_digest, head)

    def _load(self) -> None:
        if not self._path.exists():
            if self._write:
                self._path.touch()
                sync_folder(self._path.parent)
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw) and self._write:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines()):
            self._check_line(number, line)

    def _check_line(self, number: int, line: str) -> None:
        try:
            record = json.loads(line)
            fits = record["previous"] == self._last
            if fits and record["event"] == "sealed":
                seal = self._make_seal(len(self.seals), self._last, record["model_digest"])
                fits = (record["round"], record["head"]) == (seal.round_number, seal.head)
                self.seals.append(seal)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise FederationError(
                f"audit log: every line must carry the hash of the one before; line {number + 1} does not. "
                "The log "
                "was changed or is damaged: restore it from a copy."
            )
        self._last = _hash(line)


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
