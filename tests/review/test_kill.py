"""Kill −9 while corrections are saved through the page: none lost, none doubled, none half done."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from consilium.cases.dataset import Dataset, create_dataset, open_dataset
from consilium.cases.folder import CORRECTION
from consilium.geometry.crop import Box
from consilium.review.corrections import add_correction, complete_corrections
from consilium.review.images import pack_bits
from consilium.review.security import cookie_of
from consilium.review.store import Decision, DecisionStore, Verdict
from tests.cases.drafts import draft

TOKEN = "k" * 43
SERVER = """
import socket, sys
from pathlib import Path
import uvicorn
from consilium.cases.dataset import open_dataset
from consilium.review.app import build_app
from consilium.review.places import place_of
listener = socket.socket(fileno=int(sys.argv[2]))
places = [place_of(open_dataset(Path(sys.argv[1])))]
app = build_app(places, token=sys.argv[3], port=listener.getsockname()[1], export=lambda *_: Path("out.dcm"))
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
"""


@dataclass
class Told:
    """What the page was told: request -> reader of the correction that the server confirmed."""

    confirmed: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    seen: int = 0


@contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", SERVER, str(folder), str(listener.fileno()), TOKEN]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    origin = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=origin, headers={"Origin": origin}, timeout=120) as client:
        client.cookies.set(cookie_of(port), TOKEN)
        try:
            yield process, client
        finally:
            process.kill()
            process.wait()


def body_of(asked: dict[str, object], mask: np.ndarray) -> bytes:
    box = Box.around(mask)
    assert box is not None
    head = json.dumps(asked | {"box": [*box.start_zyx, *box.stop_zyx]}).encode()
    return len(head).to_bytes(4, "little") + head + pack_bits(mask[box.slices()])


def correct_until_killed(client: httpx.Client, dataset: Dataset, told: Told, start: int) -> None:
    case = dataset.case(dataset.case_ids[0])
    shape = case.image.grid.to_canonical()[0].shape_zyx
    for number in range(start, start + 10_000):
        mask = np.zeros(shape, dtype=bool)
        mask[1:3, 1:4, 1 : 2 + number % (shape[2] - 2)] = True
        asked = {"request_id": f"r{number}", "structure": "Bladder", "reader": "clinical", "person": "Dr Who"}
        told.asked.append(f"r{number}")
        try:
            answer = client.post(
                f"/place/0/case/{case.case_id}/correct", content=body_of(asked | {"seen": told.seen}, mask)
            )
        except httpx.HTTPError:
            return
        assert answer.status_code == 200, answer.text
        decision = answer.json()["decision"]
        told.seen = decision["number"]
        told.confirmed[f"r{number}"] = decision["reader"]


def check_nothing_is_half_done(folder: Path, told: Told) -> None:
    """As the next start of the page leaves it."""
    dataset, store = open_dataset(folder), DecisionStore(folder / "review" / "decisions.sqlite")
    complete_corrections(dataset, store)
    history = store.history()
    case = dataset.case(dataset.case_ids[0])
    made = {r.decision.request_id: r.decision.reader for r in history}
    assert len(made) == len(history), "a decision was doubled"
    assert told.confirmed.items() <= made.items(), "a confirmed correction is gone"
    assert set(made) <= set(told.asked)
    corrections = [a.reader for a in case.annotations if a.reader.startswith(CORRECTION)]
    assert sorted(corrections) == sorted(made.values()), "a contour without its decision, or the reverse"
    for reader in corrections[-3:]:
        annotation = case.annotation("Bladder", reader)
        assert annotation is not None
        assert int(dataset.load_mask(case, "Bladder", reader).sum()) == annotation.voxels
    assert store.intents() == []
    told.seen = history[-1].number if history else 0


def check_kills(folder: Path, kills: int, seed: int) -> None:
    dataset, rng, told = create_dataset(folder), random.Random(seed), Told()
    dataset.add(draft())
    for _ in range(kills):
        with server(folder) as (process, client):
            client.get(f"/place/0/case/{dataset.case_ids[0]}")
            start, before = len(told.asked), len(told.confirmed)
            timer = threading.Timer(rng.uniform(0.0, 1.5), os.kill, (process.pid, signal.SIGKILL))
            timer.start()
            correct_until_killed(client, dataset, told, start)
            timer.join()
        check_nothing_is_half_done(folder, told)
        assert len(told.asked) > start
        assert len(told.confirmed) >= before
    assert told.confirmed or kills < 10


def test_kills_while_corrections_are_saved_leave_nothing_half_done(tmp_path: Path) -> None:
    check_kills(tmp_path / "dataset", 2, seed=4)


@pytest.mark.slow
def test_fifty_kills_while_corrections_are_saved(tmp_path: Path) -> None:
    check_kills(tmp_path / "dataset", 50, seed=5)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft())
    return dataset


def intent(dataset: Dataset, reader: str) -> Decision:
    return Decision(
        request_id="r1",
        case_id=dataset.case_ids[0],
        structure="Bladder",
        reader=reader,
        verdict=Verdict.CORRECTED,
        person="Dr Who",
    )


def test_a_contour_whose_decision_is_missing_gets_it_at_the_next_start(dataset: Dataset) -> None:
    store = DecisionStore(dataset.folder / "review" / "decisions.sqlite")
    store.intend(intent(dataset, "correction-1"), seen=0)
    mask = np.ones(dataset.case(dataset.case_ids[0]).image.grid.shape_zyx, dtype=bool)
    add_correction(dataset, dataset.case_ids[0], "Bladder", mask)
    assert complete_corrections(dataset, store) == 1
    assert store.find("r1") is not None
    assert complete_corrections(dataset, store) == 0


def test_a_note_without_its_contour_is_dropped(dataset: Dataset) -> None:
    store = DecisionStore(dataset.folder / "review" / "decisions.sqlite")
    store.intend(intent(dataset, "correction-1"), seen=0)
    assert complete_corrections(dataset, store) == 0
    assert store.history() == []
    assert store.intents() == []


SLOW_CORRECTOR = """
import sys
from pathlib import Path
import numpy as np
from consilium.cases.dataset import open_dataset
from consilium.review.corrections import add_correction
dataset = open_dataset(Path(sys.argv[1]))
mask = np.zeros(dataset.case(sys.argv[2]).image.grid.shape_zyx, bool)
mask[0, 0, 0] = True
def wait(reader):
    print(reader, flush=True)
    sys.stdin.readline()
add_correction(dataset, sys.argv[2], "Bladder", mask, announce=wait)
"""


def test_two_processes_that_correct_at_once_overwrite_nothing(dataset: Dataset) -> None:
    case_id = dataset.case_ids[0]
    command = [sys.executable, "-c", SLOW_CORRECTOR, str(dataset.folder), case_id]
    ours = np.ones(dataset.case(case_id).image.grid.shape_zyx, dtype=bool)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == f"{CORRECTION}1\n"
        thread = threading.Thread(target=add_correction, args=(dataset, case_id, "Bladder", ours))
        thread.start()
        thread.join(timeout=1)
        other.stdin.write("\n")
        other.stdin.close()
        thread.join()
    found = {a.reader: a.voxels for a in dataset.case(case_id).annotations if CORRECTION in a.reader}
    assert found == {f"{CORRECTION}1": 1, f"{CORRECTION}2": ours.size}
