"""Decisions: none lost, none doubled, none changed, whatever is killed and however many tabs are open."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from consilium.errors import ConsiliumError
from consilium.review.store import Decision, DecisionConflict, DecisionStore, Verdict

WRITER = """
import sys
from pathlib import Path
from consilium.review.store import Decision, DecisionStore, Verdict
store = DecisionStore(Path(sys.argv[1]))
start = int(sys.argv[2])
seen = 0
history = store.history()
seen = history[-1].number if history else 0
for k in range(start, start + 100000):
    d = Decision(request_id=str(k), case_id="case-1", structure="Bladder", reader="clinical",
                 verdict=Verdict.ACCEPTED, person="Dr Who")
    seen = store.decide(d, seen=seen).number
    sys.stdout.write(f"{k}\\n"); sys.stdout.flush()
"""


def decision(request_id: str, structure: str = "Bladder", **changes: object) -> Decision:
    fields: dict[str, object] = {
        "request_id": request_id,
        "case_id": "case-1",
        "structure": structure,
        "reader": "clinical",
        "verdict": Verdict.ACCEPTED,
        "person": "Dr Who",
    }
    return Decision(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> DecisionStore:
    return DecisionStore(tmp_path / "decisions.sqlite")


def test_a_decision_is_read_back_by_another_opening(store: DecisionStore, tmp_path: Path) -> None:
    asked = decision("1", reason="fits", seconds_spent=12.5, contour_changed_mm=30.0)
    recorded = store.decide(asked, seen=0)
    again = DecisionStore(tmp_path / "decisions.sqlite")
    assert again.history() == [recorded]
    assert recorded.decision == asked


def test_a_history_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "decisions.sqlite"
    asked = DecisionStore(path).decide(decision("1"), seen=0)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE decisions DROP COLUMN contour_sha256")
    again = DecisionStore(path)
    later = again.decide(decision("2", contour_sha256="f00d"), seen=asked.number)
    assert again.history() == [asked, later]


def test_a_repeated_request_counts_once(store: DecisionStore) -> None:
    first = store.decide(decision("1"), seen=0)
    assert store.decide(decision("1"), seen=0) == first
    assert len(store.history()) == 1


def test_the_second_of_two_open_tabs_is_told_to_look_again(store: DecisionStore) -> None:
    first = store.decide(decision("1"), seen=0)
    with pytest.raises(DecisionConflict, match="since this page"):
        store.decide(decision("2", verdict=Verdict.REJECTED), seen=0)
    store.decide(decision("3", "Rectum"), seen=0)
    assert store.decide(decision("2", verdict=Verdict.REJECTED), seen=first.number).number == 3
    assert store.latest("case-1")["Bladder"].decision.verdict is Verdict.REJECTED


def test_history_can_be_neither_changed_nor_removed(store: DecisionStore, tmp_path: Path) -> None:
    store.decide(decision("1"), seen=0)
    connection = sqlite3.connect(tmp_path / "decisions.sqlite")
    for statement in ("UPDATE decisions SET verdict = 'rejected'", "DELETE FROM decisions"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()
    assert len(store.history()) == 1


def test_of_twenty_tabs_deciding_at_once_exactly_one_gets_through(store: DecisionStore) -> None:
    outcomes: list[str] = []

    def tab(number: int) -> None:
        try:
            store.decide(decision(f"tab-{number}"), seen=0)
            outcomes.append("recorded")
        except DecisionConflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=tab, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 19 + ["recorded"]
    assert len(store.history()) == 1


@pytest.mark.parametrize("person", ["", "   ", "x" * 65, "a\nb"])
def test_a_decision_without_a_person_is_refused(person: str) -> None:
    with pytest.raises(ConsiliumError, match="person"):
        decision("1", person=person)


def kill_while_deciding(path: Path, start: int, rng: random.Random) -> int:
    """Kill −9 a writer at a random moment; the number of the last decision it was told is on disk."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = int(process.stdout.readline())
    time.sleep(rng.uniform(0.0, 0.05))
    os.kill(process.pid, signal.SIGKILL)
    for line in process.stdout.read().splitlines(keepends=True):
        if line.endswith("\n"):
            told = int(line)
    process.stdout.close()
    process.wait()
    return told


def check_kills(path: Path, kills: int) -> None:
    rng = random.Random(5)
    start = 0
    for _ in range(kills):
        told = kill_while_deciding(path, start, rng)
        requests = [int(r.decision.request_id) for r in DecisionStore(path).history()]
        assert requests == list(range(len(requests))), "a decision was doubled or lost its place"
        assert requests[-1] >= told, "a decision that was confirmed is gone"
        assert requests[-1] <= told + 1
        start = requests[-1] + 1


def test_kill_minus_nine_loses_and_doubles_no_decision(tmp_path: Path) -> None:
    check_kills(tmp_path / "decisions.sqlite", 4)


@pytest.mark.slow
def test_fifty_kills_lose_and_double_no_decision(tmp_path: Path) -> None:
    check_kills(tmp_path / "decisions.sqlite", 50)
