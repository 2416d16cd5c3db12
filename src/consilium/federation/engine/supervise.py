"""Run FLARE's process beside ours: tell its progress, notice when it stalls, and say why it ended."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from consilium.errors import FederationError
from consilium.federation.durable import FolderLock
from consilium.federation.events import RoundEvent, Watch
from consilium.federation.store import FINAL

STALLED_S = 60.0
RESTART_S = 5.0
REFUSED = 3
"""Exit code of a process whose site or coordinator refused to go on: starting it again would not help."""

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(2**22),
    "MALLOC_TRIM_THRESHOLD_": str(2**24),
}
"""Each of FLARE's threads would otherwise keep freed memory in an arena of its own; and glibc, once a large
array was freed, would put the next ones on its heap, where they leave holes. Pieces of a transfer stay on the
heap: to map and unmap memory for each costs more processor time than the rest of a round."""

MARK = " - federation - "
ERROR = MARK + "ERROR - "
"""How a line of ours begins in FLARE's log."""


def supervise_coordinator(
    command: list[str], folder: Path, watch: Watch, warn: Callable[[str], None]
) -> None:
    """Run the coordinator's process to its end.

    Args:
        command: From `kit.configure_coordinator`.
        folder: The federation's folder.
        watch: Told every new state.
        warn: Told when nothing has moved for `STALLED_S`: a waiting round tells that it waits, twice a
            second.

    Raises:
        FederationError: If another process runs the same folder, or this one ended without finishing, with
            its reason.
    """
    FolderLock(folder / "journal", "journal").close()
    status, progress = folder / "status.json", folder / "progress.jsonl"
    status.unlink(missing_ok=True)
    read = progress.stat().st_size if progress.is_file() else 0
    last_text, moved, warned = "", time.monotonic(), False
    process = _spawn(command, folder)
    try:
        while True:
            ended = process.poll() is not None
            read = _tell_new(progress, read, watch)
            text = status.read_text(encoding="utf-8") if status.is_file() else ""
            if text != last_text:
                last_text, moved, warned = text, time.monotonic(), False
                _tell_waiting(text, watch)
            elif time.monotonic() - moved > STALLED_S and not warned:
                warn(
                    f"no sign of life for {STALLED_S:.0f} s; see flare.log. To stop and resume loses nothing"
                )
                warned = True
            if ended:
                break
            time.sleep(0.2)
    finally:
        _end(process)
    if process.returncode:
        last = json.loads(last_text or "{}")
        reason = last["detail"] if last.get("kind") == "stopped" else _read_reason(folder, "see flare.log")
        raise FederationError(f"coordinator: stopped. {reason}")


def supervise_site(command: list[str], folder: Path, say: Callable[[str], None]) -> None:
    """Run a hospital's process until the federation ends; start it again when FLARE gave up on a long outage.

    Raises:
        FederationError: If the site itself refused to go on, with its reason.
    """
    while not _is_final(code := _run_site_once(command, folder, say), folder):
        say(f"the transport ended ({code}); it is started again in {RESTART_S:.0f} s")
        time.sleep(RESTART_S)
    if code:
        raise FederationError(f"site: {_read_reason(folder, 'it refused to go on; see flare.log')}")


def _is_final(code: int, folder: Path) -> bool:
    """Whether the site itself ended; FLARE may also end well on its own, without a model."""
    return code == REFUSED or (code == 0 and (folder / "memory" / FINAL).is_file())


def _read_reason(folder: Path, otherwise: str) -> str:
    """The last error of ours in FLARE's log."""
    lines = (folder / "flare.log").read_text(encoding="utf-8", errors="replace").splitlines()
    reasons = [line.partition(ERROR)[2] for line in lines if ERROR in line]
    return reasons[-1] if reasons else otherwise


def _run_site_once(command: list[str], folder: Path, say: Callable[[str], None]) -> int:
    start = (folder / "flare.log").stat().st_size if (folder / "flare.log").is_file() else 0
    process = _spawn(command, folder)
    try:
        with (folder / "flare.log").open(encoding="utf-8", errors="replace") as log:
            log.seek(start)
            while True:
                code = process.poll()
                for line in log:
                    _, found, text = line.partition(MARK)
                    if found:
                        say(text.partition(" - ")[2].strip())
                if code is not None:
                    return code
                time.sleep(0.2)
    finally:
        _end(process)


def _spawn(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HOME": str((folder / "flare").resolve())} | ALLOCATOR
    (folder / "flare").mkdir(exist_ok=True)
    with (folder / "flare.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _tell_new(progress: Path, start: int, watch: Watch) -> int:
    """Tell the events written since ``start``; returns where to go on."""
    if not progress.is_file():
        return start
    with progress.open("rb") as file:
        file.seek(start)
        whole, _, _ = file.read().rpartition(b"\n")
    for line in whole.splitlines():
        record = json.loads(line)
        record.pop("at_s")
        watch(RoundEvent(**record))
    return start + len(whole) + bool(whole)


def _tell_waiting(text: str, watch: Watch) -> None:
    event = RoundEvent(**json.loads(text))
    if event.kind == "waiting":
        watch(event)
