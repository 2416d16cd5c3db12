"""Does the audit of a foreign folder find seeded faults in real data, without false alarms, in flat memory?

Real cases (sarcoma, LIDC: DICOM; OpenKBP: NIfTI) are linked into archives; in some of them one fault each
is seeded (`benchmarks.audit_faults`), the others stay untouched and are what the faulty ones stand out
from. Then archives of linked copies, of two sizes, are audited in a process each. ``ratio`` is the peak
memory of the large one by that of the small one; ``limit`` is of ``ours``.

    python -m benchmarks.audit [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.audit_faults import FAULTS, Fault
from benchmarks.measure import process_peak_mib, report
from consilium.audit.archive import audit_archive
from consilium.audit.judge import Weight
from tests.data import shared_data, unpacked

ROUNDS = 3
SIZES = (100, 1000)
TRUE_OF_THE_DATA = {
    "missing-references": "sarcoma: images were re-exported, references name others (see the data's README)",
    "truncated-view": "sarcoma: the images are cut to a region; the body covers their border",
    "name": "no name of TG-263: GTV_Mass_CT, LeftParotid, Nodule",
    "lidc-split-reading": "one reader drew a nodule in two pieces",
    "no-patient-id": "OpenKBP has none",
}


@dataclass(frozen=True)
class Planted:
    """A fault in a case of an archive."""

    fault: Fault
    case: str


def link_tree(source: Path, target: Path) -> None:
    """The folder with links in place of files."""
    for where, _, names in os.walk(source):
        folder = target / Path(where).relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).symlink_to(Path(where, name))


def real_cases() -> dict[str, dict[str, Path]]:
    """Kind -> name -> folder."""
    sts = unpacked("sts/STS_001").parent
    lidc = unpacked("lidc/LIDC-IDRI-0001").parent
    kbp = shared_data("openkbp")
    both = ("LeftParotid.nii.gz", "RightParotid.nii.gz")
    nifti = {
        p.name: p
        for p in sorted(kbp.iterdir())
        if p.is_dir() and all((p / "segmentations" / n).exists() for n in both)
    }
    dicom = {p.name: p for p in sorted(sts.iterdir()) if p.is_dir()}
    other = {p.name: p for p in sorted(lidc.iterdir()) if p.is_dir() and p.name.startswith("LIDC")}
    return {"dicom": dicom, "nifti": nifti, "untouched": other}


def plant(root: Path, cases: dict[str, dict[str, Path]], faults: list[Fault], turn: int) -> list[Planted]:
    """Make one archive: every case linked, some with a fault each."""
    for kind in cases.values():
        for name, folder in kind.items():
            link_tree(folder, root / name)
    planted = []
    for kind in ("dicom", "nifti"):
        names = list(cases[kind])
        for k, fault in enumerate(f for f in faults if f.kind == kind):
            name = names[(turn + k) % len(names)]
            fault.change(root / name)
            planted.append(Planted(fault, name))
    return planted


@dataclass
class Tally:
    """What the audit said in all rounds."""

    planted: int = 0
    untouched: int = 0
    alarmed: int = 0
    blocked: int = 0
    missed: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    def add(self, root: Path, planted: list[Planted]) -> None:
        """Audit one archive and compare."""
        found = audit_archive(root)
        place_of = {case: Path(place).relative_to(root).parts[0] for case, place in found.places.items()}
        faulty = {one.case for one in planted} | {f"{one.case}-copy" for one in planted}
        untouched = set(place_of.values()) - faulty
        codes: dict[str, set[str]] = {}
        alarmed, blocked = set(), set()
        for finding in found.audit.findings:
            case = place_of.get(finding.case_id, "")
            codes.setdefault(case, set()).add(finding.code)
            if case in untouched and finding.code not in TRUE_OF_THE_DATA:
                self.codes[finding.code] += 1
                alarmed.add(case)
                print(f"alarm on {case}: {finding.code} {finding.structure}: {finding.message}")
            if case in untouched and finding.weight is Weight.BLOCKING:
                blocked.add(case)
        for one in planted:
            # A file that cannot be read says no case; its series then lacks a slice.
            seen = codes.get(one.case, set()) | codes.get(f"{one.case}-copy", set())
            seen |= codes.get("", set()) & {"unreadable-file"}
            if not seen & one.fault.codes:
                self.missed.append(f"{one.fault.name} ({one.case}): {sorted(seen)}")
        self.planted += len(planted)
        self.untouched += len(untouched)
        self.alarmed += len(alarmed)
        self.blocked += len(blocked)


def measure_archive(size: int) -> dict[str, float]:
    """Audit ``size`` linked series in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.audit", "--archive", str(size)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def audit_links(size: int) -> None:
    """In that process: link, audit, tell."""
    cases = real_cases()
    folders = [*cases["dicom"].values(), *cases["untouched"].values()]
    with tempfile.TemporaryDirectory() as scratch:
        for k in range(size):
            link_tree(folders[k % len(folders)], Path(scratch) / f"{k:04d}")
        wall, cpu = time.monotonic(), time.process_time()
        found = audit_archive(Path(scratch))
        seconds = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps({"series": found.audit.cases, "peak_mib": process_peak_mib(), **seconds}))


def main() -> None:
    """Seed, audit, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="every fourth fault, archives of 10 and 30 series"
    )
    parser.add_argument("--archive", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.archive:
        audit_links(chosen.archive)
        return
    faults = list(FAULTS)[::4] if chosen.quick else list(FAULTS)
    rounds = 1 if chosen.quick else ROUNDS
    sizes = (10, 30) if chosen.quick else SIZES
    cases = real_cases()
    tally = Tally()
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            tally.add(Path(scratch), plant(Path(scratch), cases, faults[turn::rounds], turn))
    print(f"{len({f.name for f in faults})} kinds of faults, {tally.planted} seeded, missed:")
    print(*tally.missed or ["none"], sep="\n")
    print(
        f"{tally.untouched} untouched cases: {tally.alarmed} with a false alarm, {tally.blocked} of them "
        f"blocking; {dict(tally.codes)}"
    )
    print(f"true of the data, not counted: {json.dumps(TRUE_OF_THE_DATA)}")
    small, large = (measure_archive(size) for size in sizes)
    print(f"archives: {small} and {large}")
    report(
        "Which share of seeded faults does the audit find? ratio: peak memory at ten times the series",
        "share",
        1 - len(tally.missed) / tally.planted,
        {},
        limit=0.95,
        ratio=large["peak_mib"] / small["peak_mib"],
    )


if __name__ == "__main__":
    main()
