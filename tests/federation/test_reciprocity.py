"""What sites give and get: contribution, choice, ledger; a new organ; the plan from sketches."""

import contextlib
import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.errors import ConfigurationError, DataError, FederationError
from consilium.federation.contribution import (
    KeptUpdate,
    SealedStore,
    average,
    compute_contributions,
    find_equal,
)
from consilium.federation.desk import Desk
from consilium.federation.events import RoundEvent
from consilium.federation.grow import extend_federation
from consilium.federation.journal import Journal
from consilium.federation.local import LocalTask, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.plan_sketch import (
    AXES,
    MINIMUM_CASES,
    VOLUME,
    build_sketch,
    decode_sketch,
    join_small_bins,
    merge_sketches,
)
from consilium.federation.reciprocity import Ledger, SigningKey, Statement, choose_model
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import HeadMap, SiteEnrolment, StrategyChoice
from consilium.federation.simulation import carry_in_memory, simulate
from consilium.federation.site import Site
from consilium.federation.store import FolderStore, MemoryStore
from consilium.federation.updates import AcceptedUpdate
from tests.federation.toys import HEADS, build_local_update, build_model, build_settings_for, same_bits

HONEST = tuple(f"honest-{n}" for n in range(5))


def train_logistic(weights: np.ndarray, x: np.ndarray, y: np.ndarray, *, steps: int = 5) -> np.ndarray:
    for _ in range(steps):
        weights = weights - 0.5 * x.T @ (1 / (1 + np.exp(-x @ weights)) - y) / len(y)
    return weights


def federate(
    seed: int, bad: str, *, rounds: int = 4
) -> tuple[list[list[KeptUpdate]], np.ndarray, np.ndarray]:
    """Five honest sites with data of their own and one that is not; returns updates and the hold-out."""
    rng = np.random.default_rng(seed)
    truth = 2 * rng.normal(size=8)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, 8))
        return x, (rng.uniform(size=count) < 1 / (1 + np.exp(-x @ truth))).astype(float)

    data = {site: draw(40) for site in HONEST}
    x_bad, y_bad = draw(40)
    data["bad"] = {
        "noise": (x_bad, rng.permutation(1 - y_bad)),
        "free": (x_bad, y_bad),
        "copy": data["honest-0"],
    }[bad]
    hold_out = draw(2000)
    weights, history = np.zeros(8), []
    for number in range(rounds):
        updates = []
        for site, (x, y) in data.items():
            if site == "honest-3" and number == 1:
                continue
            after = (
                weights + 0.01 * rng.normal(size=8)
                if (site, bad) == ("bad", "free")
                else train_logistic(weights, x, y)
            )
            parameters = {"w": after}
            updates.append(
                KeptUpdate(
                    site=site, round_number=number, parameters=parameters, weight=40, structure_weights={}
                )
            )
        history.append(updates)
        weights = np.mean([update.parameters["w"] for update in updates], axis=0)
    return history, *hold_out


@pytest.mark.parametrize("bad", ["noise", "free"])
def test_a_free_rider_or_label_noise_ranks_last_in_nine_of_ten_seeds(bad: str) -> None:
    last = 0
    for seed in range(10):
        history, x, y = federate(seed, bad)

        def score(parameters: Parameters, x: np.ndarray = x, y: np.ndarray = y) -> float:
            z = x @ parameters["w"]
            return float(-np.mean(np.logaddexp(0, z) - y * z))

        found = compute_contributions(history, [*HONEST, "bad"], score)
        last += found[-1].site == "bad"
        assert {c.site: c.rounds for c in found}["honest-3"] == 3
    assert last >= 9


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_sites_that_send_the_same_update_are_named_and_stand_last(rounding: float) -> None:
    history, _, _ = federate(0, "noise")
    for updates in history:
        twin = next((u for u in updates if u.site == "honest-3"), None)
        if twin is not None:
            moved = {"w": twin.parameters["w"] * (1 + rounding)}
            updates.append(replace(twin, site="twin", parameters=moved))
    found = compute_contributions(history, [*HONEST, "bad", "twin"], lambda p: float(-np.sum(p["w"] ** 2)))
    assert {c.site: c.same_as for c in found if c.same_as} == {"honest-3": ("twin",), "twin": ("honest-3",)}
    assert {c.site for c in found[-2:]} == {"honest-3", "twin"}


def test_sites_that_send_the_same_update_once_only_are_not_the_same() -> None:
    history, _, _ = federate(0, "noise")
    first = history[0]
    first[1] = replace(first[0], site=first[1].site)
    assert find_equal(history) == {}
    assert find_equal(history[:1]) == {first[0].site: (first[1].site,), first[1].site: (first[0].site,)}


def test_a_site_that_was_never_there_has_no_figure_and_stands_last() -> None:
    history, _, _ = federate(0, "noise")
    found = compute_contributions(history, [*HONEST, "bad", "absent"], lambda p: float(p["w"].sum()))
    assert (found[-1].site, found[-1].rounds) == ("absent", 0)
    assert math.isnan(found[-1].mean_gain)


def test_kept_updates_are_sealed_readable_while_the_run_lives_and_gone_after(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=1, keep_updates=True)
    journal = Journal(tmp_path / "journal")
    desk = Desk(settings, journal.audit, clock=lambda: 0.0, spool=tmp_path / "spool")
    store = SealedStore(tmp_path / "sealed")
    sites = [
        Site(s.name, settings, build_local_update(s.name), MemoryStore(), carry_in_memory(desk, s.name))
        for s in settings.sites
    ]
    model = build_model()

    def watch(event: RoundEvent) -> None:
        if event.kind == "opened":
            assert [site.step().kind for site in sites] == ["trained", "trained"]

    plain: list[weakref.ref[AcceptedUpdate]] = []

    def keep(accepted: AcceptedUpdate) -> None:
        plain.append(weakref.ref(accepted))
        store.keep(accepted)

    final = run_rounds(settings, model, desk=desk, journal=journal, clock=lambda: 0.0, watch=watch, keep=keep)
    assert not list((tmp_path / "spool").iterdir())
    gc.collect()
    assert [reference() for reference in plain] == [None, None], "an update is held outside the seal"
    kept = store.read_round(0)
    assert [update.site for update in kept] == ["site-0", "site-1"]
    assert same_bits(final, average(kept, HeadMap()))
    sealed = b"".join(path.read_bytes() for path in (tmp_path / "sealed").iterdir())
    assert b"encoder" not in sealed
    store.destroy()
    assert not list((tmp_path / "sealed").iterdir())
    with pytest.raises(ConfigurationError, match="keep_updates"):
        run_rounds(
            build_settings_for(2), model, desk=desk, journal=journal, clock=lambda: 0.0, keep=store.keep
        )


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((0.8, 0.7, 0.75), "local"),
        ((0.7, 0.8, 0.75), "global"),
        ((0.7, 0.75, 0.8), "personalised"),
        ((0.8, 0.8, 0.8), "local"),
    ],
)
def test_a_site_is_given_its_best_model_and_never_a_worse_one(
    dice: tuple[float, float, float], best: str
) -> None:
    values = dict(zip(("local", "global", "personalised"), dice, strict=True))
    assert choose_model(values) == best
    assert values[choose_model(values)] >= values["local"]


def test_a_choice_without_all_three_figures_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        choose_model({"local": 0.5, "global": 0.6})
    with pytest.raises(ConfigurationError):
        choose_model({"local": 0.5, "global": float("nan"), "personalised": 0.1})


def state(site: str) -> Statement:
    return Statement(
        federation="toy",
        job_digest="0" * 64,
        site=site,
        cases=10,
        rounds_counted=3,
        contribution=0.01,
        dice={"local": 0.7, "global": 0.8, "personalised": 0.75},
        given="global",
        model_digest="1" * 64,
        audit_head="2" * 64,
    )


def test_the_ledger_shows_any_change_of_what_was_signed(tmp_path: Path) -> None:
    key, ledger = SigningKey(tmp_path / "key"), Ledger(tmp_path / "ledger.jsonl")
    statements = [state(f"site-{n}") for n in range(3)]
    for statement in statements:
        ledger.append(statement, key)
    assert ledger.verify(SigningKey(tmp_path / "key").public) == statements
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    forged = json.loads(lines[1])
    forged["statement"]["contribution"] = 9.0
    for damaged in (
        [lines[0], json.dumps(forged), lines[2]],
        [lines[0], lines[2]],
        [lines[1], lines[0]],
        ["{}"],
    ):
        (tmp_path / "ledger.jsonl").write_text("\n".join(damaged) + "\n")
        with pytest.raises(FederationError, match="is not what the coordinator signed"):
            ledger.verify(key.public)
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(FederationError):
        ledger.verify(SigningKey(tmp_path / "another").public)


def test_a_late_organ_adds_a_head_and_leaves_every_old_row(tmp_path: Path) -> None:
    model = build_model(heads=True)
    old_sites = (SiteEnrolment(name="site-0", cases=10, structures={"Brainstem": 10}),)
    old = build_settings_for(1, sites=old_sites, heads=HEADS, rounds=2)
    updates = {"site-0": build_local_update("site-0", structures={"Brainstem": 10})}
    before = simulate(old, model, updates, tmp_path / "run")
    heads = HeadMap(structures=(*HEADS.structures, "Esophagus"), tensors=HEADS.tensors)
    late = SiteEnrolment(name="late", cases=4, structures={"Esophagus": 4}, heads_only_until=9)
    new = build_settings_for(2, sites=(*old_sites, late), heads=heads, rounds=4)
    state_now = extend_federation(Journal(tmp_path / "run"), old, new)
    assert (state_now.round_number, state_now.phase) == (2, "COMMITTED")
    both = updates | {"late": build_local_update("late", cases=4, structures={"Esophagus": 4})}
    after = simulate(new, model, both, tmp_path / "run")
    assert after["head.weight"].shape == (4, 4)
    assert np.array_equal(after["head.weight"][1:3], before["head.weight"][1:3])
    assert not np.array_equal(after["head.weight"][3], np.zeros(4))
    alone = simulate(
        build_settings_for(1, sites=old_sites, heads=HEADS, rounds=4), model, updates, tmp_path / "alone"
    )
    assert np.abs(after["encoder.0.weight"] - alone["encoder.0.weight"]).max() < 0.05
    with pytest.raises(ConfigurationError, match="other settings"):
        simulate(old, model, updates, tmp_path / "run")


def test_a_late_organ_lets_the_old_sites_of_scaffold_go_on(tmp_path: Path) -> None:
    model, choice = build_model(heads=True), StrategyChoice(name="scaffold")
    corrections: list[np.ndarray] = []

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        corrections.append(task.correction["head.weight"])
        plain = build_local_update("site-0", structures={"Brainstem": 10})
        result = plain(parameters, round_number=round_number, task=task)
        control = {name: np.ones_like(array) for name, array in parameters.items()}
        return replace(result, control_variates=control)

    def store_of(name: str) -> FolderStore:
        stores.append(FolderStore(tmp_path / name))
        return stores[-1]

    stores: list[FolderStore] = []
    old_sites = (SiteEnrolment(name="site-0", cases=10, structures={"Brainstem": 10}),)
    old = build_settings_for(1, sites=old_sites, heads=HEADS, rounds=2, strategy=choice)
    simulate(old, model, {"site-0": train}, tmp_path / "run", stores=store_of)
    stores.pop().close()
    heads = HeadMap(structures=(*HEADS.structures, "Esophagus"), tensors=HEADS.tensors)
    grown = (SiteEnrolment(name="site-0", cases=10, structures={"Brainstem": 10, "Esophagus": 10}),)
    new = build_settings_for(1, sites=grown, heads=heads, rounds=3, strategy=choice)
    with contextlib.closing(Journal(tmp_path / "run")) as journal:
        extend_federation(journal, old, new)
    after = simulate(new, model, {"site-0": train}, tmp_path / "run", stores=store_of)
    assert after["head.weight"].shape == (4, 4)
    # Of the old rows what the site kept stands against what the coordinator has; the new row starts at zero.
    assert corrections[-1].shape == (4, 4)
    assert np.array_equal(corrections[-1][0], corrections[-2][0])
    assert np.array_equal(corrections[-1][3], np.zeros(4))


def draw_site(
    rng: np.random.Generator, count: int, spacing_mm: float
) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    per_case: dict[str, list[float]] = {}
    for axis, factor in zip("zyx", (1.0, 0.4, 0.4), strict=True):
        per_case[f"spacing_{axis}_mm"] = [
            float(v) for v in factor * spacing_mm * rng.uniform(0.9, 1.1, count)
        ]
        per_case[f"extent_{axis}_mm"] = [float(v) for v in rng.normal(300, 30, count)]
        per_case[f"kept_{axis}"] = [float(v) for v in rng.uniform(0.5, 1.0, count)]
    return per_case, [rng.normal(40, 60, 500) for _ in range(count)]


def test_merged_sketches_have_the_pooled_medians_within_two_bins_in_any_order(
    rng: np.random.Generator,
) -> None:
    sites = [draw_site(rng, count, spacing) for count, spacing in ((30, 2.5), (12, 3.0), (25, 2.0))]
    sketches = [build_sketch(*site) for site in sites]
    merged = merge_sketches(sketches)
    assert merged == merge_sketches(sketches[::-1])
    for name in sites[0][0]:
        values = [v for per_case, _ in sites for v in per_case[name]]
        axis = AXES[name]
        # Five cases share a bin, so a quantile may be that of a case two ranks away.
        ranked = np.sort(values)
        low, high = (axis.find_bins(ranked[len(ranked) // 2 + k]) for k in (-3, 3))
        assert low - 1 <= axis.find_bins(np.median(merged.values(name))) <= high + 1, name
        assert len(merged.values(name)) == 67
    mean, spread = merged.moments("intensity_hu")
    assert abs(mean - 40) < 2
    assert abs(spread - 60) < 2


def test_volumes_of_fewer_than_five_contours_are_left_out(rng: np.random.Generator) -> None:
    known = {"Larynx": 5, "Mandible": 6}
    volumes = {"Larynx": [1e4] * 4, "Mandible": [5e4] * 6}
    sketch = build_sketch(*draw_site(rng, 6, 2.5), structures=known, volumes_mm3=volumes)
    assert dict(sketch.structures) == known
    assert [name for name in sketch.counts if name.startswith(VOLUME)] == [VOLUME + "Mandible"]
    assert sketch.values(VOLUME + "Mandible") == pytest.approx([5e4] * 6, rel=0.03)
    assert decode_sketch(sketch.encode()) == sketch
    both = merge_sketches([sketch, build_sketch(*draw_site(rng, 5, 2.5), structures={"Larynx": 5})])
    assert dict(both.structures) == {"Larynx": 10, "Mandible": 6}
    other = build_sketch(*draw_site(rng, 5, 2.5), modality="MR")
    with pytest.raises(DataError, match="one kind; found CT, MR"):
        merge_sketches([sketch, other])


def test_structures_of_fewer_than_five_cases_and_names_that_no_file_can_hold_are_left_out(
    rng: np.random.Generator,
) -> None:
    known = {"Bladder": 6, "GTV_Mueller": 1, "Larynx": 4, "PTV_50.4": 6, "Blase_Hüfte": 6, "Lung (L)": 6}
    volumes = {name: [1e4] * 6 for name in known}
    sketch = build_sketch(*draw_site(rng, 6, 2.5), structures=known, volumes_mm3=volumes)
    assert dict(sketch.structures) == {"Bladder": 6}
    assert [name for name in sketch.counts if name.startswith(VOLUME)] == [VOLUME + "Bladder"]
    for name in ("GTV_Mueller", "Larynx", "PTV_50.4"):
        forged = json.loads(sketch.encode()) | {"structures": {name: known[name]}, "counts": {}}
        forged["counts"] = {k: v for k, v in json.loads(sketch.encode())["counts"].items() if k in AXES}
        with pytest.raises(DataError, match=f"{name}.* is not"):
            decode_sketch(json.dumps(forged).encode())


def test_a_sketch_holds_no_bin_of_fewer_than_five_cases_and_no_site_of_fewer(
    rng: np.random.Generator,
) -> None:
    sketch = build_sketch(*draw_site(rng, 23, 2.5))
    for name, counts in sketch.counts.items():
        if name != "intensity_hu":
            assert min(n for n in counts if n) >= MINIMUM_CASES
            assert sum(counts) == 23
    with pytest.raises(DataError, match="fewer than 5 cases sends none; found 4"):
        build_sketch(*draw_site(rng, 4, 2.5))


def test_joining_bins_keeps_the_total_and_the_median_bin() -> None:
    counts = np.array([0, 3, 0, 1, 1, 0, 4, 2, 0])
    joined = join_small_bins(counts)
    assert joined.sum() == counts.sum()
    assert set(joined) <= {0, 5, 6}


def test_a_sketch_survives_the_wire_and_a_forged_one_does_not(rng: np.random.Generator) -> None:
    sketch = build_sketch(*draw_site(rng, 10, 2.5))
    assert decode_sketch(sketch.encode()) == sketch
    assert len(sketch.encode()) < 20_000
    table = json.loads(sketch.encode())
    for change in (
        {"cases": 3},
        {"cases": 11},
        {"counts": {}},
        {"counts": table["counts"] | {"patient": {"0": 1}}},
        {"counts": table["counts"] | {"spacing_z_mm": {"0": -5, "1": 15}}},
        {"counts": table["counts"] | {"spacing_z_mm": {"9999": 10}}},
        {"counts": 5},
        {"modality": "CANARY"},
        {"structures": {"Larynx": 99}},
        {"counts": table["counts"] | {"volume_mm3/Larynx": {"0": 5}}},
    ):
        with pytest.raises(DataError):
            decode_sketch(json.dumps(table | change).encode())
