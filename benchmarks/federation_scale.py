"""How much more memory does the coordinator need for 1000 sites than for 3?

Each count runs in a process of its own: the coordinator with its desk, checks, sum and journal, and sites
that make their update when they send it and keep nothing. ``ours`` and ``ratio`` are the quotient of the
peak resident memory of the two processes; the limit is 1.1. With ``--quick`` 100 sites stand for 1000.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import process_peak_mib, report
from consilium.federation.local import LocalTask, SiteResult
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.federation.store import MemoryStore

MODEL = {"w": np.linspace(-1, 1, 2_000_000, dtype=np.float32)}


class Forgetful(MemoryStore):
    """A site's memory that keeps no update: its share of this process's memory is nothing."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Keep small things."""
        if not name.startswith("update"):
            super().write(name, content)


def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
    """A different model for every site."""
    step = np.float32(task.seed % 1000 / 1000)
    return SiteResult(parameters={name: array + step for name, array in parameters.items()}, weight=10)


def run(count: int) -> None:
    """One round of ``count`` sites; prints peak memory and digest."""
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(count))
    settings = FederationSettings(name="scale", rounds=1, sites=sites, deadline_s=3600, give_up_s=3600)
    with tempfile.TemporaryDirectory() as folder:
        updates = {site.name: train for site in sites}
        final = simulate(settings, MODEL, updates, Path(folder), stores=lambda name: Forgetful())
        print(json.dumps([process_peak_mib(), compute_digest(final)]))


def main() -> None:
    """Compare the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--count", type=int, help="run this many sites and print the peak (used by the program itself)"
    )
    arguments = parser.parse_args()
    if arguments.count:
        run(arguments.count)
        return
    peaks = {}
    for count in (3, 30, 100) if arguments.quick else (3, 30, 300, 1000):
        command = [sys.executable, __file__, "--count", str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[count], digest = json.loads(output.splitlines()[-1])
        print(f"{count} sites: peak {peaks[count]:.1f} MiB for a model of 7.6 MiB; digest {digest[:12]}")
    ratio = max(peaks.values()) / peaks[3]
    report("coordinator memory, most sites over 3", "ratio of peak RSS", ratio, {}, limit=1.1, ratio=ratio)


if __name__ == "__main__":
    main()
