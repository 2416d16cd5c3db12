"""What networks and machines do to a federation over FLARE: the bits stay those of an undisturbed run.

Every test ends with the final digest of a run with the same membership in which nothing went wrong, within a
stated time. Needs nvflare: run with `-m network`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")

from consilium.federation.engine.supervise import REFUSED
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.settings import FederationSettings
from consilium.federation.tensors import Tensors
from tests.federation.machines import Machines, Proxy
from tests.federation.membership import read_membership, replay
from tests.federation.toys import build_model, build_settings_for
from tests.federation.training_at_home import build

pytestmark = pytest.mark.network

SITES = ("site-0", "site-1", "site-2")
EVERYONE = set(SITES)
SETTINGS = build_settings_for(3, rounds=4, quorum=2, deadline_s=10.0, give_up_s=300.0, presence_s=5.0)
ALL_NEEDED = replace(SETTINGS, quorum=3)
DAY_S = 86400


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> None:
    """Real processes: nothing is patched."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[list[Machines]]:
    """Machines to be ended."""
    started: list[Machines] = []
    yield started
    for machines in started:
        machines.end()


def build_machines(
    started: list[Machines], tmp_path: Path, settings: FederationSettings, model: Parameters | None = None
) -> Machines:
    machines = Machines(tmp_path / "f", settings, model or build_model())
    started.append(machines)
    return machines


def check_same_bits(machines: Machines, tmp_path: Path, model: Parameters | None = None) -> list[set[str]]:
    """The final model is that of an undisturbed run with this membership, which is returned."""
    members = read_membership(machines.read_audit(), machines.settings)
    updates = {name: build(machines.folder / name / "site.toml") for name in SITES}
    wanted = replay(machines.settings, model or build_model(), updates, members, tmp_path / "undisturbed")
    assert compute_digest(Tensors(machines.final)) == wanted
    return members


def wait_for(what: str, machines: Machines, timeout_s: float = 300.0, *, times: int = 1) -> None:
    until = time.monotonic() + timeout_s
    audit = machines.folder / "coordinator" / "journal" / "audit.jsonl"
    while time.monotonic() < until:
        if audit.exists() and audit.read_text().count(what) >= times:
            return
        machines.revive()
        time.sleep(0.05)
    raise AssertionError(f"{what} never came\n{machines.read_log('coordinator')[-2000:]}")


def let_join(machines: Machines, site: str, back: Callable[[], object]) -> None:
    """Bring a site (back) while the others wait for it, so that the run cannot end before it took part."""
    others = sorted(EVERYONE - {site})
    machines.hold(*others)
    counted = machines.read_audit().count(f'"site":"{site}"')
    back()
    wait_for(f'"site":"{site}"', machines, times=counted + 1)
    machines.release(*others)


def behind_proxy(machines: Machines, **options: int) -> Proxy:
    proxy = Proxy(machines.port, **options)
    machines.go_through("site-1", proxy.port)
    return proxy


def test_a_killed_site_costs_one_deadline_and_takes_part_again_when_it_returns(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, SETTINGS)
    machines.seconds = 1.0
    machines.start_all()
    wait_for('"sealed"', machines)
    machines.kill("site-1")
    wait_for('"absent":["site-1"]', machines)
    let_join(machines, "site-1", lambda: machines.start("site-1"))
    machines.wait("coordinator", *SITES, timeout_s=240)
    members = check_same_bits(machines, tmp_path)
    assert (members[0], members[-1]) == (EVERYONE, EVERYONE)
    assert EVERYONE - {"site-1"} in members


def kill_at_random(machines: Machines, kills: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        time.sleep(float(rng.uniform(2.0, 7.0)))
        if machines.processes["coordinator"].poll() is None:
            machines.kill("coordinator")
            machines.start("coordinator")
    machines.wait("coordinator", *SITES, timeout_s=420)


def test_a_killed_coordinator_goes_on_with_the_same_bits(start: list[Machines], tmp_path: Path) -> None:
    machines = build_machines(start, tmp_path, ALL_NEEDED)
    machines.seconds = 0.3
    machines.start_all()
    kill_at_random(machines, 3, int(os.environ.get("CONSILIUM_SEED", "2")))
    assert check_same_bits(machines, tmp_path) == [EVERYONE] * 4


@pytest.mark.slow
def test_twenty_kills_of_the_coordinator_at_random_moments_change_no_bit(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, replace(ALL_NEEDED, rounds=24, give_up_s=400.0))
    machines.seconds = 0.5
    machines.start_all()
    kill_at_random(machines, 20, int(os.environ.get("CONSILIUM_SEED", "20")))
    assert check_same_bits(machines, tmp_path) == [EVERYONE] * 24


@pytest.mark.slow
def test_an_outage_of_a_sites_line_costs_no_bit_when_it_ends_in_time(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, ALL_NEEDED)
    machines.seconds = 0.5
    proxy = behind_proxy(machines)
    try:
        machines.start_all()
        wait_for('"sealed"', machines)
        proxy.away = True
        proxy.cut()
        time.sleep(18)
        proxy.away = False
        machines.wait("coordinator", *SITES, timeout_s=300)
        assert check_same_bits(machines, tmp_path) == [EVERYONE] * 4
    finally:
        proxy.close()


def test_an_outage_beyond_the_deadline_costs_that_site_its_rounds_and_no_bit(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, SETTINGS)
    machines.seconds = 0.5
    proxy = behind_proxy(machines)
    try:
        machines.start_all()
        wait_for('"sealed"', machines)
        proxy.away = True
        proxy.cut()
        wait_for('"absent":["site-1"]', machines)
        let_join(machines, "site-1", lambda: setattr(proxy, "away", False))
        machines.wait("coordinator", *SITES, timeout_s=300)
        members = check_same_bits(machines, tmp_path)
        assert EVERYONE - {"site-1"} in members
        assert members[-1] == EVERYONE
    finally:
        proxy.close()


def test_resets_in_the_middle_of_transfers_cost_no_bit(start: list[Machines], tmp_path: Path) -> None:
    model = {"w": np.linspace(-1, 1, 3_000_000, dtype=np.float32)}
    machines = build_machines(start, tmp_path, replace(ALL_NEEDED, clipping_norm=1e5, rounds=3), model)
    proxy = behind_proxy(machines, bytes_per_s=6_000_000)
    try:
        machines.start_all()
        marks = [8_000_000, 18_000_000, 30_000_000]
        while marks and machines.processes["coordinator"].poll() is None:
            if proxy.moved > marks[0]:
                marks.pop(0)
                proxy.cut()
            time.sleep(0.01)
        machines.wait("coordinator", *SITES, timeout_s=300)
        assert not marks
        assert check_same_bits(machines, tmp_path, model) == [EVERYONE] * 3
    finally:
        proxy.close()


@pytest.mark.slow
def test_a_line_of_fifty_kilobytes_a_second_carries_a_model_larger_than_its_first_piece(
    start: list[Machines], tmp_path: Path
) -> None:
    model = {"w": np.linspace(-1, 1, 150_000, dtype=np.float32)}
    settings = replace(ALL_NEEDED, rounds=2, deadline_s=150.0, clipping_norm=1e5)
    machines = build_machines(start, tmp_path, settings, model)
    proxy = behind_proxy(machines, bytes_per_s=50_000)
    try:
        machines.start_all()
        machines.wait("coordinator", *SITES, timeout_s=400)
        assert check_same_bits(machines, tmp_path, model) == [EVERYONE] * 2
    finally:
        proxy.close()


def test_a_late_site_joins_the_running_federation(start: list[Machines], tmp_path: Path) -> None:
    machines = build_machines(start, tmp_path, SETTINGS)
    machines.seconds = 1.0
    for name in ("coordinator", "site-0", "site-2"):
        machines.start(name)
    wait_for('"absent":["site-1"]', machines)
    let_join(machines, "site-1", lambda: machines.start("site-1"))
    machines.wait("coordinator", *SITES, timeout_s=240)
    members = check_same_bits(machines, tmp_path)
    assert (members[0], members[-1]) == (EVERYONE - {"site-1"}, EVERYONE)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc libc6-dev")
def test_clocks_that_are_off_by_a_day_change_nothing(start: list[Machines], tmp_path: Path) -> None:
    library, source = tmp_path / "clock_shift.so", Path(__file__).parent / "clock_shift.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    machines = build_machines(start, tmp_path, ALL_NEEDED)
    for name, shift_s in (("site-1", DAY_S), ("site-2", -DAY_S)):
        machines.environments[name] = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_S": str(shift_s)}
    machines.start_all()
    machines.wait("coordinator", *SITES, timeout_s=240)
    assert check_same_bits(machines, tmp_path) == [EVERYONE] * 4
    tomorrow = time.strftime("%Y-%m-%d", time.localtime(time.time() + DAY_S))
    assert tomorrow in machines.read_log("site-1"), "the clock was not wrong"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in a folder that ``mount`` names."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=24m", "consilium-test", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(options).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until nothing more fits."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**10, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


@pytest.mark.parametrize("name", ["coordinator", "site-1"])
def test_a_full_disk_ends_with_its_reason_and_goes_on_after_with_the_same_bits(
    start: list[Machines], tmp_path: Path, small_disk: Path, name: str
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).symlink_to(small_disk)
    model = {"w": np.linspace(-1, 1, 200_000, dtype=np.float32)}
    machines = build_machines(start, tmp_path, replace(ALL_NEEDED, clipping_norm=1e5), model)
    machines.seconds = 0.5
    machines.start_all()
    wait_for('"sealed"', machines)
    filler = fill(small_disk)
    # The coordinator may also wait: it takes no update in while there is no room, and goes on when there is.
    with contextlib.suppress(subprocess.TimeoutExpired):
        machines.processes[name].wait(15.0 if name == "coordinator" else 120.0)
    assert machines.processes[name].poll() in ((REFUSED, None) if name == "coordinator" else (REFUSED,))
    filler.unlink()
    until = time.monotonic() + 240
    while machines.processes["coordinator"].poll() != 0 and time.monotonic() < until:
        machines.revive()
        if machines.processes[name].poll() == REFUSED:
            assert "No space left on device" in machines.read_log(name)
            machines.start(name)
        time.sleep(0.1)
    machines.wait("coordinator", *SITES, timeout_s=240)
    assert check_same_bits(machines, tmp_path, model) == [EVERYONE] * 4


def test_two_live_processes_with_one_identity_count_as_one_site(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, replace(ALL_NEEDED, rounds=3))
    machines.seconds = 1.0
    shutil.copytree(machines.folder / "site-1", machines.folder / "twin")
    machines.start_all()
    wait_for('"sealed"', machines)
    machines.start("twin", identity="site-1")
    machines.wait("coordinator", "site-0", "site-2", timeout_s=300)
    assert check_same_bits(machines, tmp_path) == [EVERYONE] * 3
    accepted = [json.loads(line) for line in machines.read_audit().splitlines() if '"accepted"' in line]
    assert sorted((line["round"], line["site"]) for line in accepted) == sorted(
        (number, site) for number in range(3) for site in SITES
    )


def test_a_stopped_site_that_wakes_up_later_is_late_and_not_lost(
    start: list[Machines], tmp_path: Path
) -> None:
    machines = build_machines(start, tmp_path, SETTINGS)
    machines.seconds = 1.0
    machines.start_all()
    wait_for('"sealed"', machines)
    sleeper = machines.processes["site-2"]
    sleeper.send_signal(signal.SIGSTOP)
    wait_for('"absent":["site-2"]', machines)
    let_join(machines, "site-2", lambda: sleeper.send_signal(signal.SIGCONT))
    machines.wait("coordinator", *SITES, timeout_s=240)
    members = check_same_bits(machines, tmp_path)
    assert EVERYONE - {"site-2"} in members
    assert members[-1] == EVERYONE
