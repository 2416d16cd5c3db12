"""kill -9 of the coordinator or a site, anywhere: the run that is started again ends with the same bits."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from consilium.errors import FederationError
from consilium.federation import durable
from consilium.federation.desk import Desk
from consilium.federation.durable import FolderLock
from consilium.federation.journal import Journal
from consilium.federation.parameters import compute_digest
from consilium.federation.simulation import carry_in_memory, simulate
from consilium.federation.site import Site
from consilium.federation.store import FolderStore
from tests.data import REPOSITORY
from tests.federation.program import SITES, build_training, settings_for
from tests.federation.toys import build_model


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is tidied up."""


def run_once(folder: Path, strategy: str) -> str:
    """One life of coordinator and sites together."""
    opened: list[FolderStore] = []

    def build_store(name: str) -> FolderStore:
        opened.append(FolderStore(folder / name))
        return opened[-1]

    updates = {site: build_training(site, seconds=0) for site in SITES}
    try:
        final = simulate(
            settings_for(strategy), build_model(), updates, folder / "journal", stores=build_store
        )
    finally:
        for store in opened:
            store.close()
    return compute_digest(final)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """``[n]``: the n-th durable step from now raises; 0 or less: none does."""
    left = [0]
    rename, remove = Path.replace, Path.unlink

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def replace(self: Path, target: Path) -> Path:
        count()
        moved = rename(self, target)
        count()
        return moved

    def unlink(self: Path, missing_ok: bool = False) -> None:
        # A killed process does not tidy up its temporary file.
        if not (self.suffix == ".part" and left[0] == 0):
            remove(self, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", lambda descriptor: count())
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    return left


def kill_and_repeat(folder: Path, strategy: str, kill_at: list[int], step: int) -> int:
    """Kill at every ``step``-th durable step, each in a run of its own; returns how many were killed."""
    undisturbed = run_once(folder / "undisturbed", strategy)
    for killed, point in enumerate(range(1, 1000, step)):
        kill_at[0] = point
        try:
            run_once(folder / str(point), strategy)
        except Killed:
            kill_at[0] = 0
            assert run_once(folder / str(point), strategy) == undisturbed, point
        else:
            return killed
    raise AssertionError("the run never ended")


@pytest.mark.parametrize(("strategy", "step"), [("fedavg", 31), ("scaffold", 17), ("fedadam", 31)])
def test_a_kill_at_a_durable_step_changes_no_bit_of_the_result(
    tmp_path: Path, kill_at: list[int], strategy: str, step: int
) -> None:
    assert kill_and_repeat(tmp_path, strategy, kill_at, step) >= 4


@pytest.mark.slow
def test_a_kill_at_every_durable_step_changes_no_bit_of_the_result(
    tmp_path: Path, kill_at: list[int]
) -> None:
    assert kill_and_repeat(tmp_path, "scaffold", kill_at, 1) > 90


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.federation.program", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)


def run_processes(folder: Path, kills: list[tuple[float, str]], strategy: str) -> str:
    """Four processes; each (seconds, who) is killed with SIGKILL and started again."""
    folder.mkdir()
    who = {"coordinator": ("coordinator", str(folder), strategy)} | {
        s: ("site", str(folder), strategy, s) for s in SITES
    }
    processes = {name: spawn(*arguments) for name, arguments in who.items()}
    try:
        for seconds, name in kills:
            time.sleep(seconds)
            processes[name].send_signal(signal.SIGKILL)
            processes[name].communicate()
            processes[name] = spawn(*who[name])
        for process in processes.values():
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error.decode()
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    for site in SITES:
        assert (folder / f"{site}.digest").exists()
    return (folder / "digest").read_text()


@pytest.mark.slow
def test_sigkill_of_processes_at_random_moments_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(int(os.environ.get("CONSILIUM_SEED", "4")))
    undisturbed = run_processes(tmp_path / "undisturbed", [], "scaffold")
    for trial in range(5):
        names = ["coordinator", *rng.permutation(SITES)[:2], "coordinator"]
        kills = [(float(rng.uniform(0.05, 0.7)), str(name)) for name in names]
        assert run_processes(tmp_path / str(trial), kills, "scaffold") == undisturbed, kills


def test_one_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    first = FolderStore(tmp_path)
    with pytest.raises(FederationError, match="one process at a time"):
        FolderStore(tmp_path)
    first.close()
    FolderStore(tmp_path).close()


def finish(folder: Path) -> Path:
    run_once(folder, "fedadam")
    return folder / "journal"


@pytest.mark.parametrize("kind", ["model", "memory"])
def test_a_flipped_bit_in_a_committed_file_is_noticed(tmp_path: Path, kind: str) -> None:
    journal = finish(tmp_path)
    path = next(journal.glob(f"{kind}-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    with pytest.raises(
        FederationError, match=f"{kind}-000004.safetensors is missing or is not what was committed"
    ):
        Journal(journal)


def test_a_changed_or_truncated_state_is_noticed(tmp_path: Path) -> None:
    journal = finish(tmp_path)
    text = (journal / "state.json").read_text()
    for damaged in (text.replace('"site-1": 3', '"site-1": 2'), text[: len(text) // 2], "[]", ""):
        (journal / "state.json").write_text(damaged)
        with pytest.raises(FederationError, match="damaged"):
            Journal(journal)
    (journal / "state.json").unlink()
    with pytest.raises(FederationError, match="is missing although 4 rounds are sealed"):
        Journal(journal)


def test_a_state_or_log_from_an_old_copy_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copies: list[Path] = []
    real = Journal.commit

    def copying(self: Journal, model: tuple[str, str], memory: tuple[str, str]) -> object:
        copies.append(shutil.copytree(self.folder, tmp_path / f"copy-{len(copies)}"))
        return real(self, model, memory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", copying)
        run_once(folder, "fedavg")
    old = copies[2]
    for name in ("audit.jsonl", "state.json"):
        mixed = shutil.copytree(folder / "journal", tmp_path / f"mixed-{name}")
        shutil.copy(old / name, mixed / name)
        with pytest.raises(FederationError, match="one of the two was rolled back"):
            Journal(mixed)
    shutil.rmtree(folder / "journal")
    shutil.copytree(old, folder / "journal")
    events = []
    site = FolderStore(folder / "site-0")
    head = site.read("head.json")
    site.close()
    assert head is not None

    journal = Journal(folder / "journal")
    desk = Desk(
        settings_for("fedavg"),
        journal.audit,
        clock=time.monotonic,
        report=lambda *event: events.append(event),
    )
    store = FolderStore(folder / "site-0")
    step = Site(
        "site-0", settings_for("fedavg"), build_training("site-0"), store, carry_in_memory(desk, "site-0")
    ).step()
    store.close()
    assert step.kind == "refused"
    assert "does not contain the head that the site keeps" in step.detail
    assert events[0][0] == "refused"


@pytest.mark.parametrize("line", [0, 3, -1])
def test_a_changed_line_of_the_audit_log_is_noticed(tmp_path: Path, line: int) -> None:
    journal = finish(tmp_path)
    lines = (journal / "audit.jsonl").read_text().splitlines()
    lines[line] = lines[line].replace('"round":', '"round":1')
    (journal / "audit.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(FederationError, match=r"audit log: every line must carry the hash|rolled back"):
        Journal(journal)


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    journal = finish(tmp_path)
    whole = (journal / "audit.jsonl").read_bytes()
    (journal / "audit.jsonl").write_bytes(whole + b'{"event":"acc')
    assert len(Journal(journal).audit.seals) == 4
    assert (journal / "audit.jsonl").read_bytes() == whole


def test_a_journal_that_is_looked_at_is_left_as_it_is(tmp_path: Path) -> None:
    journal = finish(tmp_path)
    seal = (journal / "audit.jsonl").read_bytes().splitlines(keepends=True)[-1]
    assert b'"event":"sealed"' in seal
    # As if killed between the state and its seal, in the middle of the line.
    whole = (journal / "audit.jsonl").read_bytes()
    (journal / "audit.jsonl").write_bytes(whole[: -len(seal) // 2])
    (journal / ".model.part").touch()
    before = {path: path.read_bytes() for path in journal.iterdir()}
    writer = FolderLock(journal, "journal")
    seen = Journal(journal, write=False)
    assert seen.need_state().round_number == 4
    assert len(seen.audit.seals) == 3
    with pytest.raises(TypeError, match="to look at it only"):
        seen.report("refused", "site-0", "late")
    assert {path: path.read_bytes() for path in journal.iterdir()} == before
    writer.close()
    assert len(Journal(journal).audit.seals) == 4


def test_a_full_disk_says_so_and_the_run_goes_on_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run_once(tmp_path / "undisturbed", "fedavg")
    real = durable.os.fsync
    left = [9]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(durable.os, "fsync", fsync)
    with pytest.raises(FederationError, match="No space left on device"):
        run_once(tmp_path / "full", "fedavg")
    assert run_once(tmp_path / "full", "fedavg") == undisturbed
