"""What does a round cost between machines, beside training?

Real processes on loopback over mTLS; training adds another number at each site to every parameter. ``ours``
is seconds of overhead per round (from one commit to the next), ``peers`` the same of stock FLARE's FedAvg
and, with ``--flower PYTHON``, of Flower's (see federation_peers.py; neither encrypts: to their advantage;
with ``--clear`` ours is measured a second time without TLS, as they are). ``ratio`` is ours / FLARE's at
the last size; the limit is 1. The processor seconds of all processes together stand beside: on a machine
shared with other work they are the steadier figure. Also printed: bytes on the wire over the parameters'
own (exact where the program runs as root and can make a network of its own), and the coordinator's peak
memory over the model's size. Needs nvflare: run it with an interpreter of requirements-peers/flare.txt.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil

from benchmarks.federation_peers import Cost, Meter, run_flare, run_flower
from benchmarks.measure import median, report
from consilium.federation.settings import FederationSettings, SiteEnrolment
from tests.federation.machines import Machines

OURS, CLEAR = "ours", "ours without TLS"
FLARE, FLOWER = "FLARE FedAvg (simulator)", "Flower FedAvg"


def read_loopback_bytes() -> int:
    """Bytes that have passed over loopback in this network."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if "lo:" in line).split(":")[1].split()[0])


def run_ours(
    megabytes: int, count: int, rounds: int, folder: Path, *, encrypted: bool = True
) -> tuple[Cost, dict[str, float]]:
    """What our federation costs; its wire ratio and the coordinator's peak."""
    elements = megabytes * 10**6 // 4
    model = {f"part.{n}": np.zeros(elements // 10, np.float32) for n in range(10)}
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(count))
    settings = FederationSettings(
        name="cost",
        rounds=rounds,
        sites=sites,
        quorum=count,
        deadline_s=500.0,
        give_up_s=500.0,
        clipping_norm=1e6,
    )
    machines = Machines(folder, settings, model)
    if not encrypted:
        machines.leave_unencrypted()
    before = read_loopback_bytes()
    machines.start_all()
    meter = Meter(*(process.pid for process in machines.processes.values()))
    peak = Peak(machines.processes["coordinator"].pid)
    try:
        machines.wait("coordinator", *(site.name for site in sites), timeout_s=560)
    finally:
        meter.stop()
        machines.end()
    moved = read_loopback_bytes() - before
    lines = (folder / "coordinator" / "progress.jsonl").read_text().splitlines()
    commits = [event["at_s"] for event in map(json.loads, lines) if event["kind"] == "committed"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(commits)]
    began = (folder / "coordinator" / "progress.jsonl").stat().st_mtime - json.loads(lines[-1])["at_s"]
    own = sum(array.nbytes for array in model.values())
    figures = {
        "wire": moved / (own * count * (2 * rounds + 1)),
        "memory": peak.stop() / own,
        "peak_mib": peak.stop() / 2**20,
    }
    return Cost(gaps, meter.between(began + commits[0], began + commits[-1]) / len(gaps)), figures


class Peak:
    """The largest resident memory of a process, looked at a hundred times a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            try:
                self._peak = max(self._peak, self._process.memory_info().rss)
            except psutil.Error:
                return


def describe(costs: list[Cost]) -> str:
    """The figures of several runs in words: medians, and the least and the most run."""
    walls = [median(cost.gaps) for cost in costs]
    cpus = [cost.cpu for cost in costs]
    return (
        f"{median(walls):.2f} s per round ({min(walls):.2f}–{max(walls):.2f} over {len(costs)} runs), "
        f"{median(cpus):.2f} processor seconds ({min(cpus):.2f}–{max(cpus):.2f})"
    )


def measure(
    size: str, rounds: int, repeats: int, *, flower: str | None, clear: bool
) -> dict[str, list[Cost]]:
    """Ours and, up to three sites, the peers in turn; prints what is measured on the way."""
    megabytes, count = map(int, size.split("x"))
    costs: dict[str, list[Cost]] = {OURS: [], CLEAR: [], FLARE: [], FLOWER: []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cost, figures = run_ours(megabytes, count, rounds, folder / "ours")
            costs[OURS].append(cost)
            print(size, {key: round(value, 3) for key, value in figures.items()}, flush=True)
            if count > 3:
                continue
            if clear:
                cost, _ = run_ours(megabytes, count, rounds, folder / "clear", encrypted=False)
                costs[CLEAR].append(cost)
            found = run_flare(megabytes, count, rounds, folder / "flare")
            costs[FLARE] += [found] if found else []
            if flower:
                found = run_flower(flower, megabytes, count, rounds, folder / "flower")
                costs[FLOWER] += [found] if found else []
    for who, runs in costs.items():
        if runs:
            print(f"{size} {who}: {describe(runs)}", flush=True)
    return {who: runs for who, runs in costs.items() if runs}


def main() -> None:
    """Measure the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", default="", help="e.g. 20x3,100x3,100x10")
    parser.add_argument("--rounds", type=int, default=0, help="from 2")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each size, ours and the peers in turn"
    )
    parser.add_argument("--clear", action="store_true", help="also ours without TLS")
    parser.add_argument("--flower", help="interpreter of an environment with requirements-peers/flower.txt")
    arguments = parser.parse_args()
    if os.geteuid() == 0 and not arguments.isolated:
        words = f"-m benchmarks.federation_round {' '.join(sys.argv[1:])} --isolated"
        inner = f"ip link set lo up && exec {sys.executable} {words}"
        sys.exit(subprocess.run(["unshare", "-n", "sh", "-c", inner], check=False).returncode)
    sizes = arguments.sizes or ("2x2" if arguments.quick else "20x3,100x10,100x3")
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    for size in sizes.split(","):
        costs = measure(size, rounds, arguments.repeats, flower=arguments.flower, clear=arguments.clear)
    seconds = {who: median([gap for run in runs for gap in run.gaps]) for who, runs in costs.items()}
    ours = seconds.pop(OURS)
    ratio = ours / seconds[FLARE] if FLARE in seconds else None
    report(f"overhead of a round, {size}", "s", ours, seconds, limit=1.0, ratio=ratio)


if __name__ == "__main__":
    main()
