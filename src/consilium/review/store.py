"""Decisions about contours: SQLite with an append-only history, safe against kill −9 and two open tabs."""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from consilium.errors import ConsiliumError

SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    case_id TEXT NOT NULL,
    structure TEXT NOT NULL,
    reader TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('accepted', 'rejected', 'corrected')),
    person TEXT NOT NULL CHECK (length(person) BETWEEN 1 AND 64),
    reason TEXT NOT NULL,
    time_utc TEXT NOT NULL,
    seconds_spent REAL NOT NULL CHECK (seconds_spent >= 0),
    contour_changed_mm REAL NOT NULL CHECK (contour_changed_mm >= 0),
    contour_sha256 TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS intents (
    request_id TEXT PRIMARY KEY,
    decision TEXT NOT NULL,
    seen INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_case ON decisions (case_id, structure, number);
CREATE TRIGGER IF NOT EXISTS never_changed BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END;
CREATE TRIGGER IF NOT EXISTS never_removed BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END;
"""
COLUMN_SINCE = "ALTER TABLE decisions ADD COLUMN contour_sha256 TEXT NOT NULL DEFAULT ''"
"""For histories that were begun before decisions noted which contour they are about."""
MAX_REASON_LENGTH = 1000
BUSY_TIMEOUT_S = 10.0


class Verdict(StrEnum):
    """What a person decided about one structure of one case."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CORRECTED = "corrected"


class DecisionConflict(ConsiliumError):
    """Somebody decided about the same structure since this page was loaded."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision, as it is asked for.

    Args:
        request_id: Made by the page for each click, so that a repeated request counts once.
        case_id: Pseudonym.
        structure: Name.
        reader: Whose contour is meant; for CORRECTED, the new reader.
        verdict: What was decided.
        person: Who.
        reason: Why; may be empty.
        seconds_spent: Time between opening the structure and deciding.
        contour_changed_mm: Length of contour that was drawn anew.
        contour_sha256: Digest of the contour meant; ``absent`` without one, empty where it is not known.
    """

    request_id: str
    case_id: str
    structure: str
    reader: str
    verdict: Verdict
    person: str
    reason: str = ""
    seconds_spent: float = 0.0
    contour_changed_mm: float = 0.0
    contour_sha256: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.person.strip()) <= 64 or not self.person.isprintable():
            raise ConsiliumError(
                "decision: person must have 1 to 64 printable characters. Fill in your name."
            )
        if not (math.isfinite(self.seconds_spent) and math.isfinite(self.contour_changed_mm)):
            raise ConsiliumError("decision: seconds and millimetres must be finite numbers; they are not.")
        if min(self.seconds_spent, self.contour_changed_mm) < 0:
            raise ConsiliumError("decision: seconds and millimetres must not be negative; one is.")
        if len(self.reason) > MAX_REASON_LENGTH:
            raise ConsiliumError(
                f"decision: the reason must have at most {MAX_REASON_LENGTH} characters; "
                f"it has {len(self.reason)}."
            )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A decision in the history: its number grows with time."""

    number: int
    time_utc: str
    decision: Decision


class DecisionStore:
    """The history of decisions in one SQLite file.

    Every decision is on disk before `decide` returns (full synchronisation); rows are never
    changed.

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            columns = [row["name"] for row in connection.execute("PRAGMA table_info(decisions)")]
            if "contour_sha256" not in columns:
                connection.execute(COLUMN_SINCE)

    def decide(self, decision: Decision, *, seen: int) -> Recorded:
        """Append a decision.

        Args:
            decision: What was decided.
            seen: Number of the latest decision about this structure that the person saw; 0 for none.

        Returns:
            What is in the history; the earlier record if this request was there already.

        Raises:
            DecisionConflict: If there is a later decision than the one seen.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            known = connection.execute(
                "SELECT * FROM decisions WHERE request_id = ?", (decision.request_id,)
            ).fetchone()
            if known is not None:
                return _recorded(known)
            latest = self._latest_number(connection, decision.case_id, decision.structure)
            if latest != seen:
                raise DecisionConflict(
                    f"{decision.structure}: somebody decided about it since this page was loaded. "
                    "Load the page again, look at what was decided, and decide then."
                )
            connection.execute("DELETE FROM intents WHERE request_id = ?", (decision.request_id,))
            time_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
            cursor = connection.execute(
                "INSERT INTO decisions (request_id, case_id, structure, reader, verdict, person, reason, "
                "time_utc, seconds_spent, contour_changed_mm, contour_sha256) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    decision.request_id,
                    decision.case_id,
                    decision.structure,
                    decision.reader,
                    str(decision.verdict),
                    decision.person.strip(),
                    decision.reason,
                    time_utc,
                    decision.seconds_spent,
                    decision.contour_changed_mm,
                    decision.contour_sha256,
                ),
            )
            return Recorded(number=cursor.lastrowid or 0, time_utc=time_utc, decision=decision)

    def intend(self, decision: Decision, *, seen: int) -> None:
        """Note a decision whose contour is about to be written; `decide` ends the note."""
        record = json.dumps({**vars(decision), "verdict": str(decision.verdict)})
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO intents VALUES (?, ?, ?)", (decision.request_id, record, seen)
            )

    def intents(self) -> list[tuple[Decision, int]]:
        """Noted decisions that were never made, each with the number seen: what a kill left half done."""
        with self._connection() as connection:
            rows = connection.execute("SELECT decision, seen FROM intents ORDER BY rowid").fetchall()
        found = [(json.loads(row["decision"]), int(row["seen"])) for row in rows]
        return [
            (Decision(**{**fields, "verdict": Verdict(fields["verdict"])}), seen) for fields, seen in found
        ]

    def forget(self, request_id: str) -> None:
        """End the note of a decision that is not going to be made."""
        with self._connection() as connection:
            connection.execute("DELETE FROM intents WHERE request_id = ?", (request_id,))

    def find(self, request_id: str) -> Recorded | None:
        """The decision that was recorded for a request, if any."""
        with self._connection() as connection:
            row = connection.execute("SELECT * FROM decisions WHERE request_id = ?", (request_id,)).fetchone()
            return None if row is None else _recorded(row)

    def history(self, case_id: str | None = None) -> list[Recorded]:
        """Every decision in order; of one case, or of all."""
        query = "SELECT * FROM decisions"
        arguments: tuple[str, ...] = ()
        if case_id is not None:
            query, arguments = f"{query} WHERE case_id = ?", (case_id,)
        with self._connection() as connection:
            return [_recorded(row) for row in connection.execute(f"{query} ORDER BY number", arguments)]

    def latest(self, case_id: str) -> dict[str, Recorded]:
        """Structure -> its latest decision."""
        return {recorded.decision.structure: recorded for recorded in self.history(case_id)}

    def latest_of_all(self) -> dict[str, dict[str, Recorded]]:
        """Case id -> structure -> its latest decision."""
        found: dict[str, dict[str, Recorded]] = {}
        for recorded in self.history():
            found.setdefault(recorded.decision.case_id, {})[recorded.decision.structure] = recorded
        return found

    def _latest_number(self, connection: sqlite3.Connection, case_id: str, structure: str) -> int:
        row = connection.execute(
            "SELECT MAX(number) FROM decisions WHERE case_id = ? AND structure = ?", (case_id, structure)
        ).fetchone()
        return int(row[0] or 0)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def _recorded(row: sqlite3.Row) -> Recorded:
    fields = dict(row)
    number, time_utc = fields.pop("number"), fields.pop("time_utc")
    decision = Decision(**{**fields, "verdict": Verdict(fields["verdict"])})
    return Recorded(number=number, time_utc=time_utc, decision=decision)
