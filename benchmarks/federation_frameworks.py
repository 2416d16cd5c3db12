"""Does a federation of torch and TensorFlow hospitals train to the Dice of one of torch alone?

OpenKBP patients, contoured as they really are, are shared out among three sites: ``torch`` trains at all of
them, ``mixed`` has TensorFlow at two, and ``nudged`` is torch again from first weights changed by one part in
ten million, which shows how far rounding alone carries the same training. In float32, in one process, over
the same desk, frames and checks as between hospitals. ``ratio`` is the distance of the mean Dice of ``mixed``
and ``torch``; its limit is 0.01.

    python -m benchmarks.federation_frameworks [--quick] [--rounds 20] [--steps 8] [--out FOLDER]

Results are kept in ``--out``, one file per method, and not computed again.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.federation_openkbp import ORGANS_BY_SITE, Setting, build_setting, load_or_run, mean_of
from benchmarks.measure import report
from consilium.federation.local import LocalUpdate
from consilium.federation.simulation import simulate
from consilium.hospital.agreement import read_agreement
from consilium.hospital.local_update import Hospital
from consilium.training.site import TORCH

SITES = ("site-1", "site-2", "site-3")
METHODS = {
    "torch": ("torch", "torch", "torch"),
    "mixed": ("torch", "tensorflow", "tensorflow"),
    "nudged": ("torch", "torch", "torch"),
}
NUDGE = 1e-7


def run_method(setting: Setting, method: str, folder: Path) -> list[list[float]]:
    """Dice of every judge and organ; NaN where the organ is not contoured."""
    agreement = read_agreement(setting.settings)
    updates: dict[str, LocalUpdate] = {}
    for site, framework in zip(SITES, METHODS[method], strict=True):
        trainer = TORCH
        if framework == "tensorflow":
            from consilium.tensorflow.site import TENSORFLOW

            trainer = TENSORFLOW
        updates[site] = Hospital(site, agreement, setting.by_site[site], (), framework=trainer)
    initial = agreement.build_initial()
    if method == "nudged":
        rng = np.random.default_rng(0)
        initial = {
            n: (v * (1 + NUDGE * rng.standard_normal(v.shape))).astype(v.dtype) for n, v in initial.items()
        }
    final = simulate(setting.settings, initial, updates, folder / "journal")
    judge = Hospital("judge", agreement, setting.judges, setting.judges)
    return [list(row) for row in judge.score(final).table]


def main() -> None:
    """Run every method and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eight patients, two rounds of two steps")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, help="where to keep results; a temporary folder by default")
    options = parser.parse_args()
    patients, rounds, steps = options.patients, options.rounds, options.steps
    if options.quick:
        patients, rounds, steps = 8, 2, 2
    every = {organ for organs in ORGANS_BY_SITE.values() for organ in organs}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        setting = build_setting(
            out,
            patients=patients,
            seed=0,
            rounds=rounds,
            steps=steps,
            organs_by_site=dict.fromkeys(SITES, every),
        )
        if setting is None:
            raise SystemExit("the OpenKBP patients are not here")
        training = [len(setting.by_site[site]) for site in SITES]
        print(f"{training} patients train, {len(setting.judges)} judge")
        tables = {
            method: load_or_run(out / f"{method}.json", functools.partial(run_method, setting, method))
            for method in METHODS
        }
    print("method | mean | " + " | ".join(setting.settings.heads.structures))
    for method, table in tables.items():
        organs = " | ".join(f"{value:.3f}" for value in np.nanmean(table, axis=0))
        print(f"{method} | {mean_of(table):.4f} | {organs}")
    judges = {m: np.nanmean(table, axis=1) for m, table in tables.items()}
    apart = {m: float(np.abs(judges[m] - judges["torch"]).max()) for m in METHODS}
    print(f"largest change of one patient: mixed {apart['mixed']:.4f}, nudged {apart['nudged']:.4f}")
    means = {method: mean_of(table) for method, table in tables.items()}
    ours = means.pop("mixed")
    question = "Does a federation of torch and TensorFlow hospitals train to the Dice of one of torch alone?"
    report(question, "mean Dice", ours, means, limit=0.01, ratio=abs(ours - means["torch"]))


if __name__ == "__main__":
    main()
