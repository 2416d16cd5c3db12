"""What comes out: a late organ, the best of three models, comparison, contributions, statements, pages."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, DataError
from consilium.federation.contribution import SealedStore
from consilium.federation.grow import extend_federation
from consilium.federation.journal import Journal
from consilium.federation.parameters import Parameters
from consilium.federation.reciprocity import Ledger, SigningKey
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.federation.simulation import simulate
from consilium.hospital.comparison import compare, measure_contributions, train_references
from consilium.hospital.council import count_rounds, state_outcomes
from consilium.hospital.local_update import Hospital
from consilium.hospital.outcome import Outcome, conclude, judge, train_alone
from consilium.hospital.pages import write_council_page, write_site_page
from consilium.inference.model import load_model
from tests.hospital.hospitals import make_dataset, make_settings, open_all, same_bits, shared_plan

BOTH = ("Bladder", "Rectum")


class Ended:
    """Two hospitals with different organs after a short federation, and what was kept of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.datasets: dict[str, Dataset] = {
            "a": make_dataset(folder / "a", first=0, cases=6, known=("Bladder",)),
            "b": make_dataset(folder / "b", first=20, cases=6, known=BOTH),
        }
        plan, config = shared_plan(self.datasets["b"], BOTH)
        sites = {"a": (6, {"Bladder": 6}), "b": (6, dict.fromkeys(BOTH, 6))}
        self.settings: FederationSettings = make_settings(
            plan, config, sites, rounds=5, steps=8, keep_updates=True
        )
        self.hospitals: dict[str, Hospital] = open_all(self.settings, self.datasets, hold_out=0.34)
        self.initial: Parameters = self.hospitals["a"].agreement.build_initial()
        self.store = SealedStore(folder / "sealed")
        self.final = simulate(
            self.settings, self.initial, self.hospitals, folder / "journal", keep=self.store.keep
        )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("ended"))


def test_a_hospital_is_given_the_best_of_three_models_on_its_own_hold_out(
    ended: Ended, tmp_path: Path
) -> None:
    outcome = conclude(ended.hospitals["b"], ended.final, tmp_path / "b")
    assert outcome.dice[outcome.given] >= outcome.dice["local"] - 0.005
    assert outcome.dice[outcome.given] == max(outcome.dice.values())
    given = load_model(tmp_path / "b" / "given.consilium")
    assert given.structures == BOTH
    assert given.description.card["which"] == "given"
    figures = outcome.figures["global"]
    assert figures.patients == {"Bladder": 2, "Rectum": 2}
    mean, low, high = figures.structures["Bladder"]
    assert low <= mean <= high
    read = Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
    assert read == outcome
    write_site_page(tmp_path / "b.html", outcome, federation="balls")
    page = (tmp_path / "b.html").read_text()
    assert "fine-tuned here" in page
    assert f"{outcome.dice['local']:.3f}" in page
    assert "case-" not in json.dumps(outcome.to_json())


def test_a_federation_gives_an_organ_that_a_hospital_never_contoured(ended: Ended) -> None:
    references = train_references(ended.hospitals, pooled=True)
    assert set(references) == {"a alone", "b alone", "pooled"}
    found = compare(ended.hospitals, {**references, "federated": ended.final})
    alone, together = found.models["a alone"], found.models["federated"]
    assert alone.structures["Rectum"][0] < together.structures["Rectum"][0]
    assert set(found.by_site["federated"]) == {"a", "b"}
    assert set(found.by_site["federated"]["a"].structures) == {"Bladder"}
    json.dumps(found.to_json(), allow_nan=False)


def test_contributions_are_measured_and_the_ledger_holds_them(ended: Ended, tmp_path: Path) -> None:
    found = measure_contributions(ended.settings, ended.store, ended.hospitals)
    assert {c.site for c in found} == {"a", "b"}
    assert all(c.rounds == 2 and math.isfinite(c.mean_gain) for c in found)
    outcomes = {"b": conclude(ended.hospitals["b"], ended.final, tmp_path / "b", local=ended.initial)}
    statements = state_outcomes(ended.folder, ended.settings, outcomes, found)
    again = state_outcomes(ended.folder, ended.settings, outcomes, found)
    assert statements == again
    public = SigningKey(ended.folder / "ledger.key").public
    signed = Ledger(ended.folder / "ledger.jsonl").verify(public)
    assert signed == statements, "the second call added nothing"
    assert [s.rounds_counted for s in statements] == [5, 5]
    assert statements[0].given == ""
    assert statements[1].given == outcomes["b"].given
    tables = write_council_page(
        tmp_path / "council.html",
        federation="balls",
        outcomes=outcomes,
        statements=statements,
        contributions=found,
    )
    assert [table.title for table in tables][-1] == "Contribution"
    assert statements[0].model_digest[:16] in (tmp_path / "council.html").read_text()


def test_a_late_hospital_alone_trains_everything_from_its_first_round(ended: Ended) -> None:
    own = ended.hospitals["b"]
    enrolled = SiteEnrolment(name="late", cases=6, structures=dict.fromkeys(BOTH, 6), heads_only_until=4)
    late = Hospital("late", own.agreement, own.training, own.hold_out, enrolled=enrolled)
    assert same_bits(train_alone(late, rounds=1), train_alone(own, rounds=1))


def test_a_round_that_was_opened_again_counts_who_was_there_when_it_was_closed(tmp_path: Path) -> None:
    lines = [
        *({"event": "accepted", "round": 0, "site": site} for site in ("a", "b")),
        {"event": "closed", "round": 0, "sites": 2, "absent": []},
        {"event": "accepted", "round": 1, "site": "b"},
        {"event": "accepted", "round": 1, "site": "a"},
        {"event": "closed", "round": 1, "sites": 1, "absent": ["b"]},
        {"event": "accepted", "round": 2, "site": "a"},
    ]
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert count_rounds(tmp_path) == {"a": 2, "b": 1}


def test_models_cannot_be_judged_without_a_hold_out(ended: Ended) -> None:
    blind = Hospital("blind", ended.hospitals["a"].agreement, ended.hospitals["a"].training, ())
    with pytest.raises(ConfigurationError, match="at least 2 cases must be held out"):
        judge(blind, ended.final)


@pytest.mark.parametrize("record", [{}, {"site": "a", "figures": {}, "given": "local"}])
def test_what_is_no_outcome_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(DataError, match="consilium federation conclude"):
        Outcome.from_json(record)


@pytest.mark.slow
def test_a_late_hospital_adds_its_organ_and_leaves_the_others_within_a_hundredth(tmp_path: Path) -> None:
    early = {
        name: make_dataset(tmp_path / name, first=first, cases=5, known=("Bladder",))
        for name, first in (("a", 0), ("b", 20))
    }
    late = make_dataset(tmp_path / "late", first=40, cases=5, known=("Rectum",))
    plan, config = shared_plan(early["a"], ("Bladder",))
    counts = {name: (5, {"Bladder": 5}) for name in early}
    old = make_settings(plan, config, counts, rounds=6, steps=8)
    first = open_all(old, early, hold_out=0.34)
    before_model = simulate(old, first["a"].agreement.build_initial(), first, tmp_path / "journal")
    before = {name: judge(hospital, before_model).mean for name, hospital in first.items()}
    grown, _ = shared_plan(early["a"], BOTH)
    new = make_settings(grown, config, {**counts, "late": (5, {"Rectum": 5})}, rounds=14, steps=8)
    sites = [dataclasses.replace(s, heads_only_until=8) if s.name == "late" else s for s in new.sites]
    new = dataclasses.replace(new, sites=tuple(sites))
    extend_federation(Journal(tmp_path / "journal"), old, new)
    hospitals = open_all(new, {**early, "late": late}, hold_out=0.34)
    after_model = simulate(new, {}, hospitals, tmp_path / "journal")
    for name in early:
        after = judge(hospitals[name], after_model)
        assert after.structures["Bladder"][0] >= before[name] - 0.01, name
    assert before["a"] > 0.6
    assert judge(hospitals["late"], after_model).structures["Rectum"][0] > 0.2
    assert np.isfinite(after_model["heads.0.weight"]).all()
