"""A dataset in a federation: one site is local training, unknown organs wait, rules act on gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, DatasetError
from consilium.federation.local import LocalTask
from consilium.federation.parameters import Parameters
from consilium.federation.settings import SiteEnrolment, StrategyChoice
from consilium.federation.simulation import simulate
from consilium.hospital.agreement import read_agreement
from consilium.hospital.local_update import Hospital, HospitalData
from consilium.training.config import Budget
from consilium.training.loop import train
from consilium.training.run_folder import create_run
from tests.hospital.hospitals import make_dataset, make_settings, open_all, same_bits, shared_plan

BOTH = ("Bladder", "Rectum")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("one") / "dataset", first=0, cases=5, known=BOTH)


def one_site(
    dataset: Dataset,
    *,
    rounds: int = 3,
    steps: int = 4,
    strategy: StrategyChoice | None = None,
    **changes: object,
) -> Hospital:
    plan, config = shared_plan(dataset, BOTH, **changes)
    sites = {"site-a": (5, dict.fromkeys(BOTH, 5))}
    settings = make_settings(plan, config, sites, rounds=rounds, steps=steps, strategy=strategy)
    return open_all(settings, {"site-a": dataset})["site-a"]


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.1},
        {"network": "iunet", "channels": (16, 32), "mode": "patch", "patch_zyx": (8, 16, 16)},
    ],
)
def test_a_federation_of_one_hospital_is_consilium_train_bit_for_bit(
    dataset: Dataset, tmp_path: Path, changes: dict[str, object]
) -> None:
    plan, config = shared_plan(dataset, BOTH, **changes)
    sites = {"site-a": (5, dict.fromkeys(BOTH, 5))}
    settings = make_settings(plan, config, sites, rounds=3, steps=4)
    hospital = open_all(settings, {"site-a": dataset})["site-a"]
    agreement = read_agreement(settings)
    final = simulate(settings, agreement.build_initial(), {"site-a": hospital}, tmp_path / "journal")

    run = create_run(tmp_path / "run", config, plan, split_of(hospital), Budget(steps=12))
    prior_of_run = pytest.MonkeyPatch()
    # `train` measures the prior on its cases; the federation agreed on one.
    prior_of_run.setattr("consilium.training.loop.output_prior", lambda cases, n: [0.01] * n)
    outcome = train(run, hospital.training, hospital.hold_out)
    prior_of_run.undo()
    local = {name: value.numpy() for name, value in outcome.state.network.state_dict().items()}
    assert outcome.state.step == 12
    assert same_bits(final, local)


def split_of(hospital: Hospital) -> "object":
    from consilium.cases.split import Split

    return Split(
        training=tuple(case.case_id for case in hospital.training),
        validation=tuple(case.case_id for case in hospital.hold_out),
        structures={},
    )


def play(
    hospital: Hospital, start: Parameters, memory: Parameters, number: int = 1
) -> tuple[Parameters, Parameters]:
    result = hospital(dict(start), round_number=number, task=LocalTask(round_number=number, memory=memory))
    return result.parameters, result.memory


def test_the_same_round_gives_the_same_bits_whatever_was_trained_between(dataset: Dataset) -> None:
    hospital = one_site(dataset)
    start = hospital.agreement.build_initial()
    first, memory = play(hospital, start, {}, 0)
    second = play(hospital, first, memory, 1)
    play(hospital, start, {}, 2)
    again = play(hospital, first, memory, 1)
    fresh = play(one_site(dataset), first, memory, 1)
    for other in (again, fresh):
        assert same_bits(second[0], other[0])
        assert same_bits(second[1], other[1])
    forgotten = play(hospital, first, {}, 1)
    assert not same_bits(second[0], forgotten[0])


def test_an_organ_that_a_hospital_does_not_know_keeps_its_head_there(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", first=0, cases=4, known=("Bladder",))
    plan, config = shared_plan(dataset, BOTH)
    settings = make_settings(plan, config, {"a": (4, {"Bladder": 4})}, rounds=2, steps=3)
    hospital = open_all(settings, {"a": dataset})["a"]
    start = hospital.agreement.build_initial()
    result = hospital(dict(start), round_number=0, task=LocalTask(round_number=0))
    assert result.cases_by_structure == {"Bladder": 3}
    assert result.weight == 3
    for name in settings.heads.tensors:
        bladder, rectum = (settings.heads.rows(s, len(start[name])) for s in BOTH)
        assert np.array_equal(result.parameters[name][rectum], start[name][rectum])
        assert not np.array_equal(result.parameters[name][bladder], start[name][bladder])


def test_an_organ_that_a_hospital_did_not_enrol_with_is_not_reported(dataset: Dataset) -> None:
    plan, config = shared_plan(dataset, BOTH)
    settings = make_settings(plan, config, {"a": (5, {"Bladder": 5})}, rounds=2, steps=1)
    settings = replace(settings, training={**settings.training, "validate_every": 1})
    hospital = open_all(settings, {"a": dataset})["a"]
    start = hospital.agreement.build_initial()
    result = hospital(dict(start), round_number=1, task=LocalTask(round_number=1))
    assert set(result.cases_by_structure) == {"Bladder"}
    assert "dice/Rectum" not in result.metrics


def test_a_spring_keeps_the_model_nearer_to_what_was_received(dataset: Dataset) -> None:
    hospital = one_site(dataset, steps=6)
    start = hospital.agreement.build_initial()
    moved = []
    for mu in (0.0, 10.0):
        task = LocalTask(round_number=1, proximal_mu=mu)
        trained = hospital(dict(start), round_number=1, task=task).parameters
        moved.append(sum(float(np.sum((trained[n] - start[n]) ** 2)) for n in start))
    assert moved[1] < moved[0]


def test_control_variates_are_the_mean_of_the_uncorrected_gradients(dataset: Dataset) -> None:
    hospital = one_site(dataset, steps=1)
    start = hospital.agreement.build_initial()
    zeros = {name: np.zeros_like(value) for name, value in start.items()}
    plain = hospital(
        dict(start), round_number=0, task=LocalTask(round_number=0, correction=zeros, wants_control=True)
    )
    assert set(plain.control_variates) == set(start)
    ones = {name: np.full_like(value, 0.01) for name, value in start.items()}
    corrected = hospital(
        dict(start), round_number=0, task=LocalTask(round_number=0, correction=ones, wants_control=True)
    )
    for name, value in plain.control_variates.items():
        assert np.array_equal(corrected.control_variates[name], value)
    assert not same_bits(plain.parameters, corrected.parameters)
    state = hospital._state
    before = torch.from_numpy(plain.control_variates["heads.0.bias"])
    assert float(before.abs().max()) > 0
    assert state.step == 1


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "scaffold"])
def test_every_rule_trains_hospitals_with_local_normalisation(
    strategy: str, dataset: Dataset, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "b", first=10, cases=3, known=("Rectum",))
    plan, config = shared_plan(dataset, BOTH)
    sites = {"a": (5, dict.fromkeys(BOTH, 5)), "b": (3, {"Rectum": 3})}
    settings = make_settings(
        plan,
        config,
        sites,
        rounds=2,
        steps=2,
        strategy=StrategyChoice(name=strategy),
        local_names=("*norm_weight",),
    )
    hospitals = open_all(settings, {"a": dataset, "b": other}, hold_out=0.0)
    initial = hospitals["a"].agreement.build_initial()
    final = simulate(settings, initial, hospitals, tmp_path / "journal")
    assert not any(name.endswith("norm_weight") for name in final)
    assert not np.array_equal(final["heads.0.weight"], initial["heads.0.weight"])


def test_a_hospital_that_knows_no_organ_of_the_federation_is_told_so(
    dataset: Dataset, tmp_path: Path
) -> None:
    plan, config = shared_plan(dataset, ("Prostate",))
    settings = make_settings(plan, config, {"a": (5, {"Prostate": 5})}, rounds=1, steps=1)
    with pytest.raises(DatasetError, match="some case must know a structure of the federation"):
        open_all(settings, {"a": dataset})


def test_more_cases_than_enrolled_are_refused_before_anything_is_trained(dataset: Dataset) -> None:
    plan, config = shared_plan(dataset, BOTH)
    settings = make_settings(plan, config, {"a": (3, dict.fromkeys(BOTH, 3))}, rounds=1, steps=1)
    with pytest.raises(ConfigurationError, match="may train on the 3 cases it enrolled with"):
        open_all(settings, {"a": dataset})


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "dataset is missing"),
        ({"dataset": "d", "datset": 1}, "'datset' is not a setting"),
        ({"dataset": "d", "hold_out": 1.0}, r"hold_out must be in \[0, 1\)"),
        ({"dataset": ""}, "needs dataset"),
    ],
)
def test_a_wrong_hospital_table_says_what_is_wrong(table: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        HospitalData.read(table)


def test_a_late_hospital_teaches_its_head_on_the_trunk_it_received(dataset: Dataset) -> None:
    hospital = one_site(dataset)
    enrolled = SiteEnrolment(name="late", cases=5, structures=dict.fromkeys(BOTH, 5), heads_only_until=2)
    late = Hospital("late", hospital.agreement, hospital.training, (), enrolled=enrolled)
    start = hospital.agreement.build_initial()
    early = late(dict(start), round_number=1, task=LocalTask(round_number=1)).parameters
    changed = {name for name in start if not np.array_equal(early[name], start[name])}
    assert changed == {"heads.0.weight", "heads.0.bias"}
    after = late(dict(start), round_number=2, task=LocalTask(round_number=2)).parameters
    assert not np.array_equal(after["encoder.0.0.weight"], start["encoder.0.0.weight"])
