"""How much more memory does the coordinator need for 1000 sites than for 3?

For each count the coordinator is a process of its own, as between machines: desk, spool on disk, checks,
sum and journal, one round. The sites live in this process and reach it over a Unix socket, three at a time
whatever their number. ``ours`` and ``ratio`` are the quotient of the coordinator's peak resident memory
with the most sites and with three; the limit is 1.1. The digest of the result is printed: sites take part
in another order in every run. With ``--quick`` 60 sites stand for 1000.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.measure import process_peak_mib, report
from consilium.federation.desk import Desk
from consilium.federation.engine.supervise import ALLOCATOR
from consilium.federation.journal import Journal
from consilium.federation.local import LocalTask, SiteResult
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.site import Site
from consilium.federation.sockets import SocketCarrier, serve_socket
from consilium.federation.store import MemoryStore

MODEL = {"w": np.linspace(-1, 1, 2_000_000, dtype=np.float32)}
TOKEN = b"a benchmark's"
AT_A_TIME = 3
UPDATES = 60
"""At least so many updates arrive in every run: a peak needs some of them at the same moment."""


def settings_for(count: int) -> FederationSettings:
    """Rounds of ``count`` sites, all of them needed; few sites get more rounds."""
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(count))
    return FederationSettings(
        name="scale",
        rounds=max(1, UPDATES // count),
        sites=sites,
        quorum=count,
        deadline_s=3600,
        give_up_s=3600,
    )


def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
    """A different model for every site."""
    step = np.float32(task.seed % 1000 / 1000)
    return SiteResult(parameters={name: array + step for name, array in parameters.items()}, weight=10)


def coordinate(count: int, folder: Path) -> None:
    """The coordinator's process: prints its peak memory and the result's digest."""
    settings, journal = settings_for(count), Journal(folder / "journal")
    desk = Desk(settings, journal.audit, clock=time.monotonic, spool=folder / "spool", report=journal.report)
    with serve_socket(desk, folder / "s", {site.name: TOKEN for site in settings.sites}):
        final = run_rounds(settings, MODEL, desk=desk, journal=journal, clock=time.monotonic)
        print(json.dumps([process_peak_mib(), compute_digest(final)]))


def take_part(name: str, settings: FederationSettings, folder: Path, store: MemoryStore) -> None:
    """One site: trains for a round, sends, and hangs up."""
    carrier = SocketCarrier(folder / "s", name, TOKEN)
    site = Site(name, settings, train, store, carrier)
    while True:
        try:
            if site.step().kind == "trained":
                break
        except OSError:
            pass
        time.sleep(0.02)
    carrier.close()
    # The update itself need not be kept here: this process holds all sites.
    for kept in store.list_names():
        if kept.startswith("update"):
            store.remove(kept)


def measure(count: int, seed: int) -> tuple[float, str]:
    """Peak memory in MiB and digest."""
    settings = settings_for(count)
    names = [site.name for site in settings.sites]
    random.Random(seed).shuffle(names)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.federation_scale"]
        # As engine/supervise.py runs the coordinator between machines.
        process = subprocess.Popen(
            [*command, "--coordinator", str(folder), "--count", str(count)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ALLOCATOR,
        )
        stores = {site: MemoryStore() for site in names}
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for _ in range(settings.rounds):
                work = [pool.submit(take_part, site, settings, folder, stores[site]) for site in names]
                for done in work:
                    done.result()
        output, _ = process.communicate()
    peak, digest = json.loads(output.splitlines()[-1])
    return float(peak), str(digest)


def main() -> None:
    """Compare the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.coordinator:
        coordinate(arguments.count, arguments.coordinator)
        return
    peaks: dict[int, float] = {}
    for count in (3, 60) if arguments.quick else (3, 30, 300, 1000):
        found = [measure(count, seed) for seed in range(arguments.repeats)]
        peaks[count] = max(peak for peak, _ in found)
        digests = {digest[:12] for _, digest in found}
        shown = ", ".join(f"{peak:.1f}" for peak, _ in found)
        print(
            f"{count} sites: peak {shown} MiB for a model of 7.6 MiB; digest {', '.join(digests)}", flush=True
        )
        assert len(digests) == 1
    ratio = max(peaks.values()) / peaks[3]
    report("coordinator memory, most sites over 3", "ratio of peak RSS", ratio, {}, limit=1.1, ratio=ratio)


if __name__ == "__main__":
    main()
