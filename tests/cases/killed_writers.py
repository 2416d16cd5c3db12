"""Writers of a dataset that are killed; a program of its own, so that it may fork.

``python -m tests.cases.killed_writers WHAT FOLDER`` ends with 0 if the dataset stood it.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilium.cases.dataset import Dataset, create_dataset, open_dataset
from consilium.cases.draft import CaseDraft
from tests.cases.drafts import draft

WRITING_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}


def in_child(work: Callable[[], Any]) -> int:
    """Fork; return the child's pid. The child ends with 0, or with 1 where ``work`` raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_at(event_number: int, folder: Path, work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` in a process that dies without a word before its n-th change of a file in ``folder``."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in WRITING_EVENTS and str(folder) in str(arguments[0]):
            seen += 1
            if seen == event_number:
                os._exit(9)

    def run() -> None:
        sys.addaudithook(watch)
        work()

    return run


def changed(number: int) -> CaseDraft:
    """The source of ``draft(number)`` with other content and other identifiers."""
    source = draft(number)
    return replace(
        source,
        annotations=source.annotations[:1],
        source_sha256={"series": "f" * 64},
        private={**source.private, "patient_name": "Roe^New"},
    )


def check_whole(dataset: Dataset, number: int, *, listed: bool | None = None) -> None:
    """Every case is readable, and its record and its private record tell of the same source."""
    again = open_dataset(dataset.folder)
    cases = {case.case_id: case for case in again.cases()}
    case_id = again.private_part().case_id(draft(number).source_identity)
    assert listed is None or (case_id in cases) == listed
    for case in cases.values():
        again.load_image(case)
        for reader in case.readers("Bladder"):
            again.load_mask(case, "Bladder", reader)
    if case_id in cases:
        is_new = cases[case_id].provenance.source_sha256["series"] == "f" * 64
        name = again.private_part().read_record(case_id)["patient_name"]
        assert (name == "Roe^New") == is_new, "private record and case are of different sources"
        assert len(cases[case_id].annotations) == (1 if is_new else 3)


def check_swept(dataset: Dataset) -> None:
    """One more add leaves no trace of the dead."""
    dataset.add(draft(99), replace=True)
    hidden = [p for p in dataset.folder.rglob(".*") if p.name != ".lock" and "private" not in p.parts]
    assert not hidden, hidden


def at_every_event(folder: Path) -> None:
    """Kill an add, a replacement, an update and a removal before each of their changes of a file."""
    for kind in ("add", "replace", "update", "remove"):
        for event in range(1, 400):
            dataset = create_dataset(folder / f"{kind}-{event}")
            if kind != "add":
                dataset.add(draft(1))
            case_id = dataset.private_part().case_id(draft(1).source_identity)

            def work(kind: str = kind, dataset: Dataset = dataset, case_id: str = case_id) -> None:
                if kind == "update":
                    dataset.update(replace(dataset.case(case_id), findings=()))
                elif kind == "remove":
                    dataset.remove(case_id)
                else:
                    dataset.add(draft(1) if kind == "add" else changed(1), replace=True)

            code = exit_code(in_child(dying_at(event, dataset.folder, work)))
            assert code in (0, 9), code
            check_whole(dataset, 1, listed={"replace": True, "update": True}.get(kind))
            check_swept(dataset)
            check_whole(dataset, 1)
            if code == 0:
                break
        else:
            raise AssertionError("the writer never came to its end")


def at_random(folder: Path) -> None:
    """kill −9 at random moments of a run of adds."""
    choose = random.Random(20261123)
    dataset = create_dataset(folder)

    def work() -> None:
        for number in range(1, 1000):
            dataset.add(changed(number) if choose.random() < 0.5 else draft(number), replace=True)

    for _ in range(10):
        pid = in_child(work)
        time.sleep(choose.uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        for number in range(1, 8):
            check_whole(dataset, number)
    check_swept(dataset)


def two_at_once(folder: Path) -> None:
    """Two processes make one dataset and add overlapping cases."""

    def adder(numbers: range) -> Callable[[], None]:
        def work() -> None:
            dataset = create_dataset(folder)
            for number in numbers:
                dataset.add(draft(number))

        return work

    pids = [in_child(adder(range(1, 21))), in_child(adder(range(30, 10, -1)))]
    assert [exit_code(pid) for pid in pids] == [0, 0]
    dataset = open_dataset(folder)
    assert len(dataset.case_ids) == 30
    for number in range(1, 31):
        check_whole(dataset, number, listed=True)
    check_swept(dataset)


if __name__ == "__main__":
    {"at-every-event": at_every_event, "at-random": at_random, "two-at-once": two_at_once}[sys.argv[1]](
        Path(sys.argv[2])
    )
