"""Does the contribution tell who gives nothing?

Four honest sites of small images with balls, and a fifth that is one of: a free rider (hands the received
model back), the first site's dataset enrolled again, the same patients in another order (as a copy under
other pseudonyms has them), or a site whose masks lie in the wrong place. A small ``unet3d`` learns in six
rounds by our federation; the contribution is the mean over all rounds of the score with everybody minus the
score without the site, the score being mean Dice on the honest sites' held-out patients. Twice: each honest
site contours two of four organs (``different``), or all four (``same``).

``ours`` is the number of seeds, of ten, in which the fifth site ranks last (the copy: it and its original
rank last, since no figure can tell which of two equal updates is the copy), the lowest over all kinds but
the copy in another order, which no rule looks for, where sites have different organs; ``limit`` is 9.
``peers`` holds every count. ``--quick`` runs one seed.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import report
from consilium.federation.contribution import SealedStore, compute_contributions
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.hospital.agreement import head_map, plan_table, read_agreement
from consilium.hospital.local_update import Hospital
from consilium.training.augment import Augmentation
from consilium.training.config import TrainingConfig
from consilium.training.data import PreparedCase, pack_structures
from consilium.training.facts import Facts
from consilium.training.plan import Plan
from consilium.training.planning import decide_plan
from consilium.training.site import count_known

SHAPE = (12, 24, 24)
ORGANS = {"One": 120.0, "Two": 60.0, "Three": -70.0, "Four": -140.0}
"""Organ -> how much its ball differs from the tissue around it."""

REORDERED = "copy in another order"
KINDS = ("free rider", "copy", REORDERED, "wrong masks")
HONEST = 4
TRAINING, HELD_OUT = 4, 1
ROUNDS, STEPS = 6, 6


@dataclass(frozen=True)
class World:
    """One seed's sites.

    Args:
        plan: Of everybody.
        config: Of the training.
        training: Site -> its cases.
        held_out: Of the honest sites.
    """

    plan: Plan
    config: TrainingConfig
    training: Mapping[str, list[PreparedCase]]
    held_out: list[PreparedCase]


def make_case(
    name: str, rng: np.random.Generator, known: Sequence[str], *, wrong: bool = False
) -> PreparedCase:
    """Four balls in noise; with ``wrong`` the masks lie elsewhere than the balls."""
    grid = Grid(SHAPE, Affine.from_spacing((3.0, 3.0, 3.0)))
    z, y, x = np.indices(SHAPE)
    values = rng.normal(0, 15, SHAPE)
    masks = []
    for k, step in enumerate(ORGANS.values()):
        cy, cx = 6.5 + 11 * (k // 2) + rng.uniform(-1.5, 1.5), 6.5 + 11 * (k % 2) + rng.uniform(-1.5, 1.5)
        ball = (z - 5.5 - rng.uniform(-1, 1)) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < 3.6**2
        values[ball] += step
        masks.append(np.roll(ball, (3, 12, 12), axis=(0, 1, 2)) if wrong else ball)
    bits = pack_structures(masks, SHAPE)
    return PreparedCase(
        case_id=name,
        patient_id=name,
        grid=grid,
        original_grid=grid,
        image=values.astype(np.int16),
        bits=bits,
        reference_bits=bits,
        known=np.array([organ in known for organ in ORGANS]),
        voxels=np.array([int(mask.sum()) for mask in masks]),
        points=tuple(np.argwhere(mask).astype(np.int32) for mask in masks),
    )


def make_world(seed: int, kind: str, *, different: bool) -> World:
    """Sites and patients of one seed."""
    rng = np.random.default_rng([seed, 20261125])
    organs = list(ORGANS)
    training: dict[str, list[PreparedCase]] = {}
    held_out = []
    for site in range(HONEST):
        known = [organs[site], organs[(site + 1) % len(organs)]] if different else organs
        name = f"honest-{site + 1}"
        training[name] = [make_case(f"{name}-{n}", rng, known) for n in range(TRAINING)]
        held_out += [make_case(f"{name}-judge-{n}", rng, organs) for n in range(HELD_OUT)]
    if kind in ("copy", REORDERED):
        training["fifth"] = training["honest-1"][:: 1 if kind == "copy" else -1]
    else:
        training["fifth"] = [
            make_case(f"fifth-{n}", rng, organs, wrong=kind == "wrong masks") for n in range(TRAINING)
        ]
    config = TrainingConfig(
        channels=(8, 16),
        rate=1e-2,
        crop="none",
        augmentation=Augmentation(probability=0.0),
        seed=seed,
        average=0.0,
        watch="off",
    )
    grids = [case.grid for case in held_out]
    facts = Facts(structures=tuple(organs), is_ct=True, grids=grids, kept_zyx=np.ones(3), volumes_mm3={})
    plan = decide_plan(facts, config, memory_bytes=2 << 30, device=torch.device("cpu"), bf16=False)
    return World(plan, config, training, held_out)


def ride_free(cases: Sequence[PreparedCase]) -> LocalUpdate:
    """Hand back what was received, and claim all cases and organs."""

    def update(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        known = dict.fromkeys(task.structures, len(cases))
        return SiteResult(parameters=dict(parameters), weight=len(cases), cases_by_structure=known)

    return update


def rank(world: World, kind: str, folder: Path) -> list[str]:
    """Sites, the largest contribution first."""
    structures = world.plan.structures
    sites = tuple(
        SiteEnrolment(name=name, cases=len(cases), structures=count_known(cases, structures))
        for name, cases in world.training.items()
    )
    table = {
        "steps_per_round": STEPS,
        "validate_every": 0,
        "config": {name: value for name, value in world.config.to_json().items() if value is not None},
        "plan": plan_table(world.plan),
        "prior": [0.02] * len(structures),
    }
    settings = FederationSettings(
        name="balls",
        rounds=ROUNDS,
        sites=sites,
        heads=head_map(world.plan),
        keep_updates=True,
        training=table,
    )
    agreement = read_agreement(settings)
    updates: dict[str, LocalUpdate] = {
        name: Hospital(name, agreement, cases, ()) for name, cases in world.training.items()
    }
    if kind == "free rider":
        updates["fifth"] = ride_free(world.training["fifth"])
    judge = Hospital("judge", agreement, world.held_out, world.held_out)
    store = SealedStore(folder / "sealed")
    simulate(settings, agreement.build_initial(), updates, folder / "journal", keep=store.keep)
    rounds = [store.read_round(number) for number in store.list_rounds()]
    found = compute_contributions(rounds, list(world.training), lambda p: judge.score(p).mean, settings.heads)
    store.destroy()
    gains = {c.site: c.mean_gain for c in found}
    print(f"  {kind}: " + ", ".join(f"{site} {gain:+.4f}" for site, gain in gains.items()), flush=True)
    return list(gains)


def is_last(order: Sequence[str], kind: str) -> bool:
    """Whether the fifth site ranks last; a copy and its original have the same figure."""
    copied = kind in ("copy", REORDERED)
    return set(order[-2:]) == {"honest-1", "fifth"} if copied else order[-1] == "fifth"


def main() -> None:
    """Ten seeds, three kinds, two worlds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, different organs only")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    seeds = 1 if options.quick else options.seeds
    counts: dict[str, float] = {}
    for world_name in ("different",) if options.quick else ("different", "same"):
        for kind in KINDS:
            last = 0
            for seed in range(seeds):
                world = make_world(seed, kind, different=world_name == "different")
                with tempfile.TemporaryDirectory() as folder:
                    last += is_last(rank(world, kind, Path(folder)), kind)
            counts[f"{kind}, {world_name} organs"] = last
            print(f"{kind}, {world_name} organs: last in {last} of {seeds} seeds", flush=True)
    ours = min(v for name, v in counts.items() if "different" in name and not name.startswith(REORDERED))
    question = "Does the contribution tell who gives nothing?"
    report(question, f"seeds of {seeds}", ours, counts, limit=9.0, ratio=None)


if __name__ == "__main__":
    main()
