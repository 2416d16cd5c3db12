"""Taking a case into a dataset so that a kill at any point leaves the old case or the new one, whole.

While a case is exchanged the old one lies in ``cases/.outgoing-ID``. Whether the exchange happened is decided
by the manifest alone: it holds the digest of the old record or of the new one.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from consilium.cases.files import sync_folder
from consilium.cases.folder import CASE_RECORD, file_sha256

MANIFEST = "dataset.json"
INCOMING = ".incoming-"
OUTGOING = ".outgoing-"
BEFORE = ".before-"


@contextmanager
def dataset_lock(folder: Path) -> Iterator[None]:
    """One writer at a time, across processes; ends with the process that holds it."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def incoming_folder(folder: Path, case_id: str) -> Iterator[Path]:
    """A new folder of this writer's own to write a case in; gone at the end unless it was renamed.

    The folder is locked while its writer lives, so that `settle` can tell it from a dead writer's.
    """
    with dataset_lock(folder):
        incoming = folder / "cases" / f"{INCOMING}{case_id}-{secrets.token_hex(4)}"
        incoming.mkdir(parents=True)
        descriptor = os.open(incoming, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield incoming
    finally:
        os.close(descriptor)
        shutil.rmtree(incoming, ignore_errors=True)


def begin_exchange(folder: Path, case_id: str, incoming: Path) -> None:
    """Put the old case aside and the incoming one in its place; the caller holds the lock."""
    target, outgoing = folder / "cases" / case_id, folder / "cases" / f"{OUTGOING}{case_id}"
    record, record_aside = _private_records(folder, case_id)
    if target.exists():
        shutil.rmtree(outgoing, ignore_errors=True)
        record_aside.unlink(missing_ok=True)
        if record.exists():
            os.link(record, record_aside)
        target.rename(outgoing)
    incoming.rename(target)
    sync_folder(target.parent)


def settle(folder: Path, case_id: str, listed_sha256: str | None) -> None:
    """End an exchange or update of a case that was cut short, the way the manifest says; holds the lock.

    Args:
        folder: The dataset's.
        case_id: The case.
        listed_sha256: What the manifest says of its record; None if it does not list the case. Then nothing
            is done: the next add of the same source takes the folder over.
    """
    if listed_sha256 is None:
        return
    target, outgoing = folder / "cases" / case_id, folder / "cases" / f"{OUTGOING}{case_id}"
    record, record_aside = _private_records(folder, case_id)
    before = folder / "cases" / f"{BEFORE}{case_id}"
    if _holds(target / CASE_RECORD, listed_sha256):
        shutil.rmtree(outgoing, ignore_errors=True)
        record_aside.unlink(missing_ok=True)
        before.unlink(missing_ok=True)
        _clear_temporary(target, CASE_RECORD)
    elif _holds(before, listed_sha256):
        before.replace(target / CASE_RECORD)
        _clear_temporary(target, CASE_RECORD)
    elif _holds(outgoing / CASE_RECORD, listed_sha256):
        shutil.rmtree(target, ignore_errors=True)
        if record_aside.exists():
            record_aside.replace(record)
        outgoing.rename(target)
    sync_folder(folder / "cases")


def sweep(folder: Path, listed: Mapping[str, str]) -> None:
    """Settle and clear what killed writers left; the caller holds the lock."""
    for entry in os.scandir(folder / "cases"):
        if entry.name.startswith(OUTGOING):
            case_id = entry.name.removeprefix(OUTGOING)
            settle(folder, case_id, listed.get(case_id))
            if case_id not in listed:
                shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name.startswith(BEFORE):
            case_id = entry.name.removeprefix(BEFORE)
            settle(folder, case_id, listed.get(case_id))
            Path(entry.path).unlink(missing_ok=True)
        elif entry.name.startswith(INCOMING) and _writer_is_gone(Path(entry.path)):
            shutil.rmtree(entry.path, ignore_errors=True)
    _clear_temporary(folder, MANIFEST)


def undo_new(folder: Path, case_id: str) -> None:
    """Take away a case that was never listed."""
    shutil.rmtree(folder / "cases" / case_id, ignore_errors=True)
    for record in _private_records(folder, case_id):
        record.unlink(missing_ok=True)


def keep_record(folder: Path, case_id: str) -> None:
    """Keep a second name for a case's record before it is written anew; `settle` ends it."""
    before = folder / "cases" / f"{BEFORE}{case_id}"
    before.unlink(missing_ok=True)
    os.link(folder / "cases" / case_id / CASE_RECORD, before)


def _private_records(folder: Path, case_id: str) -> tuple[Path, Path]:
    records = folder / "private" / "cases"
    return records / f"{case_id}.json", records / f"{OUTGOING}{case_id}.json"


def _holds(record: Path, sha256: str) -> bool:
    try:
        return file_sha256(record) == sha256
    except OSError:
        return False


def _clear_temporary(folder: Path, name: str) -> None:
    """Remove what `write_atomically` left of ``name`` when it was killed."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _writer_is_gone(incoming: Path) -> bool:
    with suppress(OSError):
        descriptor = os.open(incoming, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    return False
