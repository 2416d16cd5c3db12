"""Combination rules against closed forms, and against what they promise."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.errors import ConfigurationError
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters
from consilium.federation.rounds import check_fit
from consilium.federation.settings import SiteEnrolment, StrategyChoice
from consilium.federation.simulation import simulate
from consilium.federation.strategies import build_strategy
from consilium.federation.tensors import Tensors
from tests.federation.toys import (
    HEADS,
    build_local_update,
    build_model,
    build_settings_for,
    compute_control_variates,
    same_bits,
)

START = {"w": np.array([1.0, -2.0, 0.5])}


def descend(matrix: np.ndarray, target: np.ndarray, *, steps: int = 10, rate: float = 0.1) -> LocalUpdate:
    """Gradient descent on ``(w - target)' matrix (w - target) / 2``, honouring FedProx and SCAFFOLD."""

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        received = parameters["w"]
        w = received.copy()
        for _ in range(steps):
            gradient = matrix @ (w - target) + task.proximal_mu * (w - received)
            w = w - rate * (gradient + task.correction.get("w", 0.0))
        control = {}
        if task.wants_control:
            control = compute_control_variates(
                parameters, {"w": w}, task.correction, steps=steps, learning_rate=rate
            )
        return SiteResult(parameters={"w": w}, weight=10, control_variates=control)

    return train


MATRICES = (np.diag([3.0, 0.2, 1.0]), np.diag([0.1, 2.0, 1.0]))
TARGETS = (np.array([1.0, 0.0, 0.0]), np.array([0.0, 2.0, 1.0]))
OPTIMUM = np.linalg.solve(sum(MATRICES), sum(m @ t for m, t in zip(MATRICES, TARGETS, strict=True)))


def run(folder: Path, strategy: str, *, rounds: int = 60, **options: float) -> np.ndarray:
    choice = StrategyChoice(name=strategy, options=options)
    settings = build_settings_for(2, rounds=rounds, strategy=choice)
    sites = {f"site-{n}": descend(MATRICES[n], TARGETS[n]) for n in range(2)}
    return simulate(settings, START, sites, folder)["w"]


def test_scaffold_reaches_the_joint_optimum_where_averaging_drifts(tmp_path: Path) -> None:
    averaged = run(tmp_path / "fedavg", "fedavg")
    corrected = run(tmp_path / "scaffold", "scaffold")
    assert np.abs(corrected - OPTIMUM).max() < 1e-6
    assert np.abs(averaged - OPTIMUM).max() > 0.05


def test_fedprox_drifts_less_the_stronger_its_spring(tmp_path: Path) -> None:
    errors = [
        np.abs(run(tmp_path / str(mu), "fedprox", proximal_mu=mu, rounds=80) - OPTIMUM).max()
        for mu in (0.0, 1.0, 8.0)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_fedadam_takes_its_first_step_as_the_paper_says(tmp_path: Path) -> None:
    settings = build_settings_for(
        1, rounds=2, strategy=StrategyChoice(name="fedadam", options={"learning_rate": 0.1})
    )
    change = np.array([0.5, -0.25, 0.0])

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        return SiteResult(parameters={"w": parameters["w"] + change}, weight=1)

    first, second = 0.1 * change, 0.01 * change**2
    expected = START["w"] + 0.1 * first / (np.sqrt(second) + 1e-3)
    first, second = 0.9 * first + 0.1 * change, 0.99 * second + 0.01 * change**2
    expected = expected + 0.1 * first / (np.sqrt(second) + 1e-3)
    np.testing.assert_allclose(
        simulate(settings, START, {"site-0": train}, tmp_path)["w"], expected, rtol=1e-9
    )


def attack(folder: Path, name: str, **options: float) -> float:
    """How far one site that sends a far-off model moves the result of seven."""
    settings = build_settings_for(7, rounds=1, quorum=7, strategy=StrategyChoice(name=name, options=options))
    model = build_model()
    sites = {site.name: build_local_update("site", noise=0.001) for site in settings.sites}
    honest = simulate(settings, model, sites, folder / "honest")

    def lie(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        return SiteResult(parameters={n: (a + 50).astype(a.dtype) for n, a in parameters.items()}, weight=10)

    attacked = simulate(settings, model, sites | {"site-3": lie}, folder / "attacked")
    return max(float(np.abs(attacked[n] - honest[n]).max()) for n in model)


def test_robust_rules_bear_a_bad_site_and_averaging_does_not(tmp_path: Path) -> None:
    assert attack(tmp_path / "fedavg", "fedavg") > 5
    for name in ("median", "trimmed_mean", "krum"):
        assert attack(tmp_path / name, name) < 0.02, name


def test_robust_rules_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(size=20).astype(np.float32) for _ in range(5)]
    for name in ("median", "trimmed_mean", "krum"):
        rule = build_strategy(StrategyChoice(name=name))
        results = {
            rule.merge([values[i] for i in order]).tobytes() for order in itertools.permutations(range(5))
        }
        assert len(results) == 1


def test_krum_picks_from_the_cluster() -> None:
    points = np.array([0.0, 0.1, 0.2, 0.15, 9.0])
    distances = (points[:, None] - points[None]) ** 2
    assert build_strategy(StrategyChoice(name="krum")).choose(distances)[0] in (1, 3)
    assert 4 not in build_strategy(StrategyChoice(name="krum", options={"keep": 3})).choose(distances)


LARYNX = {"Brainstem": 5, "Larynx": 5}


def test_a_structure_sent_by_too_few_sites_keeps_its_rows_under_a_robust_rule(tmp_path: Path) -> None:
    model = build_model(heads=True)
    sent = [{"Brainstem": 5}, {"Brainstem": 5}, LARYNX]
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10, structures=LARYNX) for n in range(3))
    choice = StrategyChoice(name="median")
    settings = build_settings_for(3, sites=sites, heads=HEADS, rounds=1, quorum=3, strategy=choice)
    updates = {f"site-{n}": build_local_update(f"site-{n}", structures=k) for n, k in enumerate(sent)}
    final = simulate(settings, model, updates, tmp_path)
    assert same_bits({"r": final["head.weight"][2]}, {"r": model["head.weight"][2]})
    assert not same_bits({"r": final["head.weight"][0]}, {"r": model["head.weight"][0]})


@pytest.mark.parametrize("name", ["fedavg", "median", "trimmed_mean", "scaffold"])
def test_sites_whose_heads_alone_count_do_not_move_the_shared_part(tmp_path: Path, name: str) -> None:
    full = [SiteEnrolment(name=f"site-{n}", cases=10, structures=LARYNX) for n in range(3)]
    late = [
        SiteEnrolment(name=f"late-{n}", cases=10, structures=LARYNX, heads_only_until=9) for n in range(2)
    ]
    choice = StrategyChoice(name=name)

    def run_with(folder: str, amount: float) -> Parameters:
        settings = build_settings_for(
            5, sites=(*full, *late), heads=HEADS, rounds=2, quorum=5, strategy=choice
        )
        sites = {site.name: shifting(0.1 if site in full else amount) for site in settings.sites}
        return simulate(settings, build_model(heads=True), sites, tmp_path / folder)

    near, far = run_with("near", 0.1), run_with("far", -40.0)
    for array in (name for name in near if name not in HEADS.tensors):
        assert np.array_equal(near[array], far[array]), array


def shifting(amount: float) -> LocalUpdate:
    """Training that moves everything by ``amount``, less SCAFFOLD's correction, and sends it as control."""

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        after = {
            name: (array + amount - task.correction.get(name, 0.0)).astype(array.dtype)
            for name, array in parameters.items()
        }
        control = {name: np.full_like(array, amount) for name, array in task.correction.items()}
        return SiteResult(parameters=after, weight=10, cases_by_structure=LARYNX, control_variates=control)

    return train


def test_scaffolds_control_of_the_shared_part_is_of_the_sites_that_train_it(tmp_path: Path) -> None:
    full = [SiteEnrolment(name=f"site-{n}", cases=10, structures=LARYNX) for n in range(2)]
    late = SiteEnrolment(name="late", cases=10, structures=LARYNX, heads_only_until=9)
    settings = build_settings_for(
        3, sites=(*full, late), heads=HEADS, rounds=1, quorum=3, strategy=StrategyChoice(name="scaffold")
    )
    sites = {"site-0": shifting(0.3), "site-1": shifting(0.6), "late": shifting(30.0)}
    simulate(settings, build_model(heads=True), sites, tmp_path)
    tensors = Tensors(next(tmp_path.glob("model-*.safetensors")))
    # The sum over the sites that count, of all that are enrolled.
    np.testing.assert_allclose(tensors["control/scale"], (0.3 + 0.6) / 3, rtol=1e-6)
    np.testing.assert_allclose(tensors["control/head.bias"][0], (0.3 + 0.6 + 30.0) / 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_a_robust_rule_that_would_never_train_a_part_is_refused(tmp_path: Path, name: str) -> None:
    rule = build_strategy(StrategyChoice(name=name))
    least = rule.least_updates

    def check(count: int, **changes: object) -> None:
        sites = [SiteEnrolment(name=f"site-{n}", cases=10, structures=LARYNX) for n in range(count)]
        sites[0] = replace(sites[0], **changes)
        choice = StrategyChoice(name=name)
        check_fit(
            build_settings_for(count, sites=tuple(sites), heads=HEADS, quorum=least, strategy=choice), rule
        )

    check(least)
    with pytest.raises(ConfigurationError, match=f"at least {least} sites that contour Larynx; {least - 1}"):
        check(least, structures={"Brainstem": 5})
    check(least + 1, structures={"Brainstem": 5})
    with pytest.raises(ConfigurationError, match="heads_only_until"):
        check(least, heads_only_until=3)
    if not rule.compares_models:
        check(least + 1, heads_only_until=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedsomething", {}),
        ("fedavg", {"learning_rate": 1.0}),
        ("fedprox", {"proximal_mu": -1.0}),
        ("fedadam", {"beta1": 1.0}),
        ("scaffold", {"global_rate": 0.0}),
        ("trimmed_mean", {"trim": 0}),
        ("krum", {"bad": 0.5}),
    ],
)
def test_a_rule_that_cannot_be_is_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        build_strategy(StrategyChoice(name=name, options=options))


def test_half_precision_halves_the_bytes_and_keeps_the_sum_of_small_steps(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=20, half_precision=True)
    start = {"w": np.full(100, 1000.0, np.float32)}

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        return SiteResult(parameters={"w": parameters["w"] + np.float32(0.1)}, weight=10)

    # A tenth is far below the spacing of 16-bit numbers at 1000; changes of it must still add up.
    final = simulate(settings, start, {"site-0": train, "site-1": train}, tmp_path)
    np.testing.assert_allclose(final["w"], 1002.0, atol=0.02)
