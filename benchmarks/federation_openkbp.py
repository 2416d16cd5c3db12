"""Do hospitals that contour different organs learn together as well as if their records lay in one place?

40 OpenKBP patients, of whom 10 judge and 30 train in four sites. The patients are really contoured in part
(Esophagus in 12 of 40); beside, each site is artificially left with some of the six organs, so that every
organ is unknown at two of four sites. One small ``iunet`` on a coarse grid, from the same first weights:

- federated: our rounds; unknown organs give no gradient, heads are combined over the sites that know them;
- federated half: the same with models and changes as 16-bit numbers on the wire;
- naive: the same rounds, unknown organs taken as background and every head combined over all sites;
- pooled: all 30 patients in one place, the same contours, as many steps as one site takes, so as much time
  where sites train side by side;
- pooled long: the same with as many steps as all sites together, so as much computing;
- alone: each site by itself, as many steps.

Whole-volume Dice on the images' own grid, mean over organs of the mean over patients. ``ours`` is the
federated mean over seeds, ``peers`` the others'; ``ratio`` is federated minus pooled long, ``limit`` -0.02.
The gain over naive (bar +0.10) stands above it: every organ is one that sites lack. So does what half
precision costs. Results are kept in
``--out``, one file per seed and method, and not trained again.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.equal_time_accuracy import openkbp
from benchmarks.measure import report
from consilium.cases.files import read_json, write_json
from consilium.cases.split import split_cases
from consilium.federation.local import LocalUpdate
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.hospital.agreement import head_map, plan_table, read_agreement
from consilium.hospital.comparison import pool
from consilium.hospital.local_update import Hospital
from consilium.hospital.outcome import train_alone
from consilium.training.config import TrainingConfig
from consilium.training.data import PreparedCase, prepare_cases
from consilium.training.loop import output_prior
from consilium.training.planning import make_plan
from consilium.training.site import count_known

ORGANS_BY_SITE = {
    "site-1": ("Brainstem", "Mandible", "Larynx"),
    "site-2": ("LeftParotid", "RightParotid", "Esophagus"),
    "site-3": ("Brainstem", "LeftParotid", "RightParotid"),
    "site-4": ("Mandible", "Larynx", "Esophagus"),
}
SPACING_MM = (6.0, 6.0, 6.0)
CHANNELS = (16, 32, 64)
CROP_ZYX = (24, 32, 32)
"""The first three quarters of the steps see crops around structures: a step costs a fifth of a whole one."""

HALF = "federated half"
METHODS = ("federated", HALF, "naive", "pooled", "pooled long", *(f"{site} alone" for site in ORGANS_BY_SITE))
SEED, SAMPLES = 20261125, 2000


@dataclass(frozen=True)
class Setting:
    """One seed's cases and federation."""

    settings: FederationSettings
    by_site: Mapping[str, list[PreparedCase]]
    judges: list[PreparedCase]


def build_setting(
    folder: Path,
    *,
    patients: int,
    seed: int,
    rounds: int,
    steps: int,
    organs_by_site: Mapping[str, Collection[str]] = ORGANS_BY_SITE,
) -> Setting | None:
    """Cases shared out among sites, each with the organs it is left with; None without the data."""
    dataset = openkbp(folder / "dataset", patients=patients)
    if dataset is None:
        return None
    config = TrainingConfig(
        network="iunet",
        channels=CHANNELS,
        spacing_zyx_mm=SPACING_MM,
        seed=seed,
        average=0.0,
        watch="off",
    )
    plan = make_plan(dataset, config, memory_bytes=4 << 30, device=torch.device("cpu"))
    plan = replace(plan, crop_zyx=CROP_ZYX)
    split = split_cases(dataset.cases(), seed=0, validation_fraction=0.25)
    training = prepare_cases(dataset, split.training, plan.structures, plan.preprocessing)
    judges = prepare_cases(dataset, split.validation, plan.structures, plan.preprocessing)
    order = np.random.default_rng([SEED, seed]).permutation(len(training))
    by_site: dict[str, list[PreparedCase]] = {}
    for k, (site, organs) in enumerate(organs_by_site.items()):
        left = np.array([name in organs for name in plan.structures])
        own = [training[i] for i in order[k :: len(organs_by_site)]]
        cases = [replace(case, known=case.known & left) for case in own]
        by_site[site] = [case for case in cases if case.known.any()]
    everyone = [case for cases in by_site.values() for case in cases]
    table = {
        "steps_per_round": steps,
        "validate_every": 0,
        "config": {name: value for name, value in config.to_json().items() if value is not None},
        "plan": plan_table(plan),
        "prior": output_prior(everyone, len(plan.structures)),
    }
    sites = tuple(
        SiteEnrolment(name=name, cases=len(cases), structures=count_known(cases, plan.structures))
        for name, cases in by_site.items()
    )
    settings = FederationSettings(
        name="openkbp", rounds=rounds, sites=sites, heads=head_map(plan), seed=seed, training=table
    )
    return Setting(settings, by_site, judges)


def as_background(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """Every organ known, those that were not contoured as if nothing were there."""
    blind = []
    for case in cases:
        unknown = [s for s, known in enumerate(case.known) if not known]
        bits = np.array(case.bits[:])
        for s in unknown:
            bits[s // 8] &= np.uint8(~(1 << (s % 8)) & 0xFF)
        voxels = np.where(case.known, case.voxels, 0)
        points = tuple(p if known else p[:0] for p, known in zip(case.points, case.known, strict=True))
        blind.append(replace(case, known=np.ones_like(case.known), bits=bits, voxels=voxels, points=points))
    return blind


def run_method(setting: Setting, method: str, folder: Path) -> list[list[float]]:
    """Dice of every judge and organ; NaN where the organ is not contoured."""
    settings = setting.settings
    agreement = read_agreement(settings)
    cases = {name: list(own) for name, own in setting.by_site.items()}
    if method == "naive":
        cases = {name: as_background(own) for name, own in cases.items()}
        every = agreement.plan.structures
        sites = tuple(replace(s, structures=dict.fromkeys(every, s.cases)) for s in settings.sites)
        settings = replace(settings, sites=sites)
    if method == HALF:
        settings = replace(settings, half_precision=True)
    hospitals = {name: Hospital(name, agreement, own, ()) for name, own in cases.items()}
    judge = Hospital("judge", agreement, setting.judges, setting.judges)
    if method == "pooled":
        final = train_alone(pool(hospitals))
    elif method == "pooled long":
        longer = replace(agreement, rounds=agreement.rounds * len(cases))
        final = train_alone(pool({n: Hospital(n, longer, own, ()) for n, own in cases.items()}))
    elif method.endswith(" alone"):
        final = train_alone(hospitals[method.removesuffix(" alone")])
    else:
        updates: dict[str, LocalUpdate] = dict(hospitals)
        final = simulate(settings, agreement.build_initial(), updates, folder / "journal")
    return [list(row) for row in judge.score(final).table]


def load_or_run(path: Path, work: Callable[[Path], list[list[float]]]) -> np.ndarray:
    """(judges, organs) by ``work``, given a journal's folder; from ``path`` where it was done before."""
    if not path.exists():
        began = time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            table = work(Path(temporary))
        spent = time.process_time() - began
        rows = [[None if value != value else value for value in row] for row in table]
        write_json(path, {"table": rows, "cpu_s": round(spent, 1)})
    kept = read_json(path)
    rows = [[np.nan if value is None else value for value in row] for row in kept["table"]]
    table = np.array(rows, float)
    print(f"{path.stem}: {mean_of(table):.4f} in {kept['cpu_s']:.0f} CPU-s", flush=True)
    return table


def mean_of(table: np.ndarray) -> float:
    """Mean over organs of the mean over patients; organs that nobody contoured are left out."""
    columns = [column[~np.isnan(column)] for column in table.T]
    return float(np.mean([column.mean() for column in columns if len(column)]))


def difference(tables: Mapping[str, list[np.ndarray]], other: str) -> str:
    """Federated minus another method: mean over seeds, its range, and an interval over patients."""
    pairs = list(zip(tables["federated"], tables[other], strict=True))
    by_seed = [mean_of(ours) - mean_of(theirs) for ours, theirs in pairs]
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(SAMPLES):
        # Patients are drawn, the same for both methods and all seeds.
        rows = rng.integers(0, len(pairs[0][0]), len(pairs[0][0]))
        drawn.append(np.mean([mean_of(ours[rows]) - mean_of(theirs[rows]) for ours, theirs in pairs]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return (
        f"federated - {other}: {np.mean(by_seed):+.4f} (seeds {min(by_seed):+.4f} to {max(by_seed):+.4f}; "
        f"95 % over patients {low:+.4f} to {high:+.4f})"
    )


def show(tables: Mapping[str, list[np.ndarray]], structures: Sequence[str]) -> None:
    """One line per method, then the differences."""
    print("method | mean | " + " | ".join(structures))
    for method, found in tables.items():
        organs = np.nanmean(np.stack([np.nanmean(table, axis=0) for table in found]), axis=0)
        cells = " | ".join(f"{value:.3f}" for value in organs)
        spread = f"{np.mean([mean_of(t) for t in found]):.4f} ± {np.std([mean_of(t) for t in found]):.4f}"
        print(f"{method} | {spread} | {cells}")
    for other in (HALF, "pooled", "pooled long", "naive"):
        print(difference(tables, other))


def main() -> None:
    """Run every method for every seed, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eight patients, two rounds of two steps")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, help="where to keep results; a temporary folder by default")
    options = parser.parse_args()
    patients, seeds = (8, 1) if options.quick else (40, options.seeds)
    rounds, steps = (2, 2) if options.quick else (options.rounds, options.steps)
    tables: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    structures: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for seed in range(seeds):
            setting = build_setting(out, patients=patients, seed=seed, rounds=rounds, steps=steps)
            if setting is None:
                raise SystemExit("the OpenKBP patients are not here")
            structures = setting.settings.heads.structures
            for method in METHODS:
                kept = out / f"seed{seed}-{method.replace(' ', '-')}.json"
                found = load_or_run(kept, functools.partial(run_method, setting, method))
                tables[method].append(found)
    show(tables, structures)
    means = {method: float(np.mean([mean_of(t) for t in found])) for method, found in tables.items()}
    ours = means.pop("federated")
    question = "Do sites with different organs learn together as well as in one place?"
    report(question, "mean Dice", ours, means, limit=-0.02, ratio=ours - means["pooled long"])


if __name__ == "__main__":
    main()
