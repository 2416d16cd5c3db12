"""Rounds: deadline, quorum, duplicates, late and absent sites, refusals; on a clock that tests move."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.desk import Desk, Notice
from consilium.federation.events import RoundEvent
from consilium.federation.journal import Journal
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.messages import encode_update
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import FederationSettings, SiteEnrolment, StrategyChoice
from consilium.federation.simulation import carry_in_memory, simulate
from consilium.federation.site import Site, Step, run_site
from consilium.federation.store import MemoryStore
from consilium.federation.uploads import Arrival
from tests.federation.toys import (
    HEADS,
    build_header,
    build_local_update,
    build_model,
    build_round,
    build_settings_for,
    build_update_bytes,
    same_bits,
    shift,
)


class Script:
    """A desk that plays given arrivals at given seconds of its own clock.

    ``plan``: round -> [(second, site, make bytes from the notice)].
    """

    def __init__(self, plan: dict[int, list[tuple[float, str, Callable[[Notice], bytes]]]]) -> None:
        self.now = 0.0
        self.verdicts: list[tuple[int, str, str, str]] = []
        self.present: set[str] = set()
        self._plan = plan
        self._opened_s = 0.0
        self._queue: list[tuple[float, str, Callable[[Notice], bytes]]] = []

    def clock(self) -> float:
        return self.now

    def publish(self, notice: Notice) -> None:
        self._notice = notice
        self._opened_s = self.now
        self._queue = sorted(self._plan.get(notice.round_number, []), key=lambda item: item[0])

    def receive(self, timeout_s: float) -> Arrival | None:
        assert timeout_s > 0
        if self._queue and self._opened_s + self._queue[0][0] <= self.now + timeout_s:
            second, site, make = self._queue.pop(0)
            self.now = max(self.now, self._opened_s + second)
            content = make(self._notice)
            return Arrival(site=site, round_number=self._notice.round_number, content=content, digest="d")
        self.now += timeout_s
        return None

    def settle(self, arrival: Arrival, verdict: str, reason: str = "", *, keep: bool = False) -> None:
        self.verdicts.append((arrival.round_number, arrival.site, verdict, reason))

    def list_present(self) -> set[str]:
        return self.present

    def close(self) -> None:
        self._queue = []

    def finish(self, notice: Notice) -> None:
        self.final = notice


MODEL = build_model()


def honest(settings: FederationSettings, site: str, amount: float = 0.1) -> Callable[[Notice], bytes]:
    def make(notice: Notice) -> bytes:
        opened = build_round(MODEL, settings, round_number=notice.round_number)
        return build_update_bytes(opened, shift(MODEL, amount), site, base_digest=notice.model_digest)

    return make


TIMES = {"deadline_s": 20.0, "give_up_s": 30.0}


def play(
    settings: FederationSettings, script: Script, folder: Path
) -> tuple[Parameters, list[RoundEvent], list[dict[str, object]]]:
    events: list[RoundEvent] = []
    final = run_rounds(
        settings, MODEL, desk=script, journal=Journal(folder), clock=script.clock, watch=events.append
    )
    audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    return final, events, audit


def test_a_round_closes_as_soon_as_everyone_has_answered(tmp_path: Path) -> None:
    settings = build_settings_for(3, rounds=1)
    script = Script({0: [(1.0, f"site-{n}", honest(settings, f"site-{n}")) for n in range(3)]})
    play(settings, script, tmp_path)
    assert script.now == 1.0


def test_a_round_closes_at_its_deadline_with_the_quorum(tmp_path: Path) -> None:
    settings = build_settings_for(3, rounds=1, quorum=2, **TIMES)
    script = Script(
        {0: [(1.0, "site-0", honest(settings, "site-0")), (2.0, "site-1", honest(settings, "site-1"))]}
    )
    _, events, audit = play(settings, script, tmp_path)
    assert script.now == settings.deadline_s
    waiting = [event for event in events if event.kind == "waiting"]
    assert waiting[-1].detail == "site-2"
    assert 0 < waiting[-1].seconds_left < 1
    assert next(line for line in audit if line["event"] == "closed")["absent"] == ["site-2"]


def test_below_the_quorum_it_waits_past_the_deadline(tmp_path: Path) -> None:
    settings = build_settings_for(3, rounds=1, quorum=2, **TIMES)
    script = Script(
        {0: [(1.0, "site-0", honest(settings, "site-0")), (25.0, "site-1", honest(settings, "site-1"))]}
    )
    play(settings, script, tmp_path)
    assert script.now == 25.0


def test_it_gives_up_at_the_stated_time_and_says_who_is_missing(tmp_path: Path) -> None:
    settings = build_settings_for(3, rounds=1, quorum=2, **TIMES)
    script = Script({0: [(1.0, "site-0", honest(settings, "site-0"))]})
    with pytest.raises(
        FederationError, match=r"needs 2 updates; 1 arrived within 30 s\. Missing: site-1, site-2"
    ):
        play(settings, script, tmp_path)
    assert script.now == settings.give_up_s


def test_an_absent_site_costs_one_deadline_and_is_awaited_again_when_heard(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=4, **TIMES)
    first = {r: [(1.0, "site-0", honest(settings, "site-0"))] for r in range(4)}
    first[3].append((6.0, "site-1", honest(settings, "site-1")))
    script = Script(first)
    seconds = []

    def watch(event: RoundEvent) -> None:
        if event.kind == "committed":
            seconds.append(script.now)
        if event.kind == "opened" and event.round_number == 3:
            script.present = {"site-1"}

    run_rounds(settings, MODEL, desk=script, journal=Journal(tmp_path), clock=script.clock, watch=watch)
    # Round 3 hears of site-1 while it still waits for site-0, and then waits for both.
    assert seconds == [20.0, 21.0, 22.0, 28.0]


def test_after_a_resume_the_seconds_left_are_of_the_rounds_since(tmp_path: Path) -> None:
    settings = build_settings_for(1, rounds=10)
    plan = {number: [(30.0, "site-0", honest(settings, "site-0"))] for number in range(10)}
    left: list[float] = []

    class Ended(BaseException):
        """Stands for a kill."""

    def watch(event: RoundEvent) -> None:
        if event.kind == "committed":
            left.append(event.seconds_left)
        if len(left) == killed_after[0] and event.kind == "opened":
            raise Ended

    killed_after = [0]
    for killed_after[0] in (6, -1):
        script = Script(plan)
        with contextlib.closing(Journal(tmp_path)) as journal, contextlib.suppress(Ended):
            run_rounds(settings, MODEL, desk=script, journal=journal, clock=script.clock, watch=watch)
    assert left == [30.0 * (9 - number) for number in range(10)]


def test_a_duplicate_counts_once_and_the_second_one_is_refused(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=1)
    one, twice = honest(settings, "site-0", 1.0), honest(settings, "site-0", 5.0)
    plan = [
        (1.0, "site-0", one),
        (1.1, "site-0", one),
        (1.2, "site-0", twice),
        (2.0, "site-1", honest(settings, "site-1", 3.0)),
    ]
    script = Script({0: plan})
    final, _, _ = play(settings, script, tmp_path)
    assert [verdict for *_, verdict, _ in script.verdicts] == ["accepted", "refused", "refused", "accepted"]
    assert final["scale"] == MODEL["scale"] + 2.0


def hostile(settings: FederationSettings) -> list[tuple[str, Callable[[Notice], bytes]]]:
    """(site that the transport vouches for, bytes)."""

    def build(
        site: str = "site-2", parameters: Parameters = MODEL, **changes: object
    ) -> Callable[[Notice], bytes]:
        def make(notice: Notice) -> bytes:
            opened = build_round(MODEL, settings, round_number=notice.round_number)
            return build_update_bytes(
                opened, parameters, site, **({"base_digest": notice.model_digest} | changes)
            )

        return make

    nan = shift(MODEL, float("nan"))

    def weigh(weight: object) -> Callable[[Notice], bytes]:
        def make(notice: Notice) -> bytes:
            opened = build_round(MODEL, settings, round_number=notice.round_number)
            header = build_header(opened, "site-2", base_digest=notice.model_digest)
            object.__setattr__(header, "weight", weight)
            return encode_update(header, MODEL, {})

        return make

    return [
        ("site-2", build(parameters=nan)),
        ("site-2", build(parameters=shift(MODEL, float("inf")))),
        ("site-2", build(parameters=MODEL | {"encoder.0.bias": np.zeros(1, np.float32)})),
        ("site-2", build(parameters=MODEL | {"scale": np.zeros((), np.float64)})),
        ("site-2", lambda notice: (10 * 2**30).to_bytes(8, "little") + bytes(100)),
        ("site-2", weigh(99)),
        ("site-2", weigh(10**12)),
        ("site-2", weigh(-9)),
        ("site-2", build(round_number=0 if settings.rounds == 1 else 1, base_digest="0" * 64)),
        ("site-2", build(site="site-0")),
        ("site-2", build(job_digest="1" * 64)),
        ("site-9", build(site="site-9")),
        ("site-2", lambda notice: b""),
        ("site-2", lambda notice: bytes(1000)),
    ]


def test_hostile_updates_are_refused_and_the_aggregate_is_that_of_the_honest_sites(tmp_path: Path) -> None:
    settings = build_settings_for(3, rounds=1)
    good = [(5.0, f"site-{n}", honest(settings, f"site-{n}", 0.1 * n)) for n in range(2)]
    bad = [(0.1 * i, site, make) for i, (site, make) in enumerate(hostile(settings))]
    bad += [(7.0 + second, site, make) for second, site, make in bad]
    honest_only, _, _ = play(settings, Script({0: good}), tmp_path / "honest")
    script = Script({0: good + bad})
    attacked, _, audit = play(settings, script, tmp_path / "attacked")
    assert same_bits(attacked, honest_only)
    refused = [line for line in audit if line["event"] == "refused"]
    assert len(refused) == len(bad)
    assert all(line["reason"] for line in refused)


def test_an_accepted_update_that_is_sent_again_in_a_later_round_is_refused(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=2)
    taken: list[bytes] = []

    def record(notice: Notice) -> bytes:
        taken.append(honest(settings, "site-0")(notice))
        return taken[-1]

    good = {
        number: [(5.0, f"site-{n}", honest(settings, f"site-{n}", 0.1 + number + n)) for n in range(2)]
        for number in range(2)
    }
    good[0][0] = (5.0, "site-0", record)
    honest_only, _, _ = play(settings, Script(good), tmp_path / "honest")
    # The same bytes, from their own site and from another.
    again = [(1.0, "site-0", lambda notice: taken[0]), (2.0, "site-1", lambda notice: taken[0])]
    script = Script({0: good[0], 1: again + good[1]})
    attacked, _, audit = play(settings, script, tmp_path / "attacked")
    assert same_bits(attacked, honest_only)
    refused = [line for line in audit if line["event"] == "refused"]
    assert [line["reason"] for line in refused] == [
        "round 0 is closed; round 1 is open",
        "it bears another site's name",
    ]


def test_the_robust_rules_say_plainly_when_sites_are_too_few(tmp_path: Path) -> None:
    for name, least in (("median", 3), ("trimmed_mean", 3), ("krum", 5)):
        settings = build_settings_for(5, quorum=2, strategy=StrategyChoice(name=name))
        with pytest.raises(ConfigurationError, match=f"{name} needs at least {least} updates in every round"):
            run_rounds(settings, MODEL, desk=Script({}), journal=Journal(tmp_path), clock=lambda: 0.0)


def train_alone(parameters: Parameters, seeds: list[LocalTask]) -> Parameters:
    train = build_local_update("site-0")
    for task in seeds:
        parameters = train(parameters, round_number=task.round_number, task=task).parameters
    return parameters


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_a_federation_of_one_site_is_local_training_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    settings = build_settings_for(1, rounds=4, strategy=StrategyChoice(name=strategy))
    tasks: list[LocalTask] = []

    def spy(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        tasks.append(task)
        return build_local_update("site-0")(parameters, round_number=round_number, task=task)

    final = simulate(settings, MODEL, {"site-0": spy}, tmp_path)
    assert same_bits(final, train_alone(MODEL, tasks))
    assert len({task.seed for task in tasks}) == 4


@pytest.mark.parametrize("count", [3, 30, 300, 1000])
def test_any_number_of_threads_and_order_of_sites_gives_the_same_digest(tmp_path: Path, count: int) -> None:
    settings = build_settings_for(count, rounds=2 if count < 300 else 1)
    digests = set()
    for workers in (1, 3):
        updates = {site.name: build_local_update(site.name) for site in settings.sites}
        folder = tmp_path / str(workers)
        digests.add(compute_digest(simulate(settings, MODEL, updates, folder, workers=workers)))
    assert len(digests) == 1


def test_local_names_never_travel_and_stay_with_their_site(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=3, local_names=("*.norm.*",))
    seen: dict[str, list[Parameters]] = {"site-0": [], "site-1": []}

    def build(site: str) -> Callable[..., SiteResult]:
        def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
            seen[site].append(parameters)
            model = MODEL | parameters
            moved = shift(model, 1.0 if site == "site-0" else 2.0)
            return SiteResult(parameters=moved, weight=10)

        return train

    final = simulate(settings, MODEL, {site: build(site) for site in seen}, tmp_path)
    assert "encoder.0.norm.weight" not in final
    assert [float(p["encoder.0.norm.weight"][0]) for p in seen["site-1"][1:]] == [3.0, 5.0]
    assert [float(p["encoder.0.norm.weight"][0]) for p in seen["site-0"][1:]] == [2.0, 3.0]
    assert "encoder.0.norm.weight" not in seen["site-0"][0]


def test_two_live_sites_with_one_identity_are_refused_and_a_restarted_one_is_not(tmp_path: Path) -> None:
    settings = build_settings_for(1, presence_s=60.0)
    now = [0.0]
    journal = Journal(tmp_path)
    desk = Desk(settings, journal.audit, clock=lambda: now[0], report=journal.report)
    stores = MemoryStore(), MemoryStore()
    carrier = carry_in_memory(desk, "site-0")
    first, second = (
        Site("site-0", settings, build_local_update("site-0"), store, carrier) for store in stores
    )
    assert first.step().kind == "waiting"
    now[0] = 50.0
    refused = second.step()
    assert refused.kind == "refused"
    assert "another live process" in refused.detail
    restarted = Site("site-0", settings, build_local_update("site-0"), stores[0], carrier)
    assert restarted.step().kind == "waiting"
    now[0] = 200.0
    assert second.step().kind == "waiting"
    assert "a second live process" in (tmp_path / "audit.jsonl").read_text()


def test_a_late_update_is_refused_by_the_name_of_its_round(tmp_path: Path) -> None:
    settings = build_settings_for(2, rounds=2, deadline_s=0.05)
    journal = Journal(tmp_path)
    desk = Desk(settings, journal.audit, clock=time.monotonic, report=journal.report)
    opened, steps = threading.Event(), []

    def train_slowly(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        if round_number == 0:
            assert opened.wait(10)
        return build_local_update("site-1")(parameters, round_number=round_number, task=task)

    def build(name: str, train: LocalUpdate) -> Site:
        return Site(name, settings, train, MemoryStore(), carry_in_memory(desk, name))

    slow = build("site-1", train_slowly)
    quick = threading.Thread(target=run_site, args=(build("site-0", build_local_update("site-0")),))
    late = threading.Thread(target=lambda: steps.extend(slow.step() for _ in range(2)))

    def watch(event: RoundEvent) -> None:
        if event.kind == "opened" and event.round_number == 0:
            quick.start()
            late.start()
        if event.kind == "opened" and event.round_number == 1:
            opened.set()
            late.join(10)

    run_rounds(settings, MODEL, desk=desk, journal=journal, clock=time.monotonic, watch=watch)
    quick.join(10)
    assert [step.kind for step in steps] == ["waiting", "trained"]
    assert steps[0].detail == "round 0: round 0 is closed; round 1 is open"
    assert "late update: round 0 is closed" in (tmp_path / "audit.jsonl").read_text()


def test_settings_a_site_did_not_approve_are_not_trained_for(tmp_path: Path) -> None:
    settings, other = build_settings_for(1), build_settings_for(1, rounds=99)
    journal = Journal(tmp_path)
    desk = Desk(settings, journal.audit, clock=lambda: 0.0)
    step = Site(
        "site-0", other, build_local_update("site-0"), MemoryStore(), carry_in_memory(desk, "site-0")
    ).step()
    assert step.kind == "refused"


def test_an_error_of_a_sites_training_ends_the_simulation_with_that_error(tmp_path: Path) -> None:
    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        raise ZeroDivisionError("in training")

    with pytest.raises(ZeroDivisionError, match="in training"):
        simulate(build_settings_for(1), MODEL, {"site-0": train}, tmp_path)


@pytest.mark.parametrize("change", ["name", "shape", "metric"])
def test_a_site_refuses_its_own_training_before_anything_leaves(tmp_path: Path, change: str) -> None:
    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        changed = {
            "name": parameters | {"patient-file": np.zeros(1, np.float32)},
            "shape": parameters | {"scale": np.zeros(1, np.float32)},
            "metric": parameters,
        }[change]
        metrics = {"dice of Smith": 1.0} if change == "metric" else {}
        return SiteResult(parameters=changed, weight=1, metrics=metrics)

    with pytest.raises(FederationError, match="site site-0"):
        simulate(build_settings_for(1), MODEL, {"site-0": train}, tmp_path)


def test_a_late_organ_trains_its_head_and_leaves_the_rest(tmp_path: Path) -> None:
    model = build_model(heads=True)
    sites = (
        SiteEnrolment(name="site-0", cases=10, structures={"Brainstem": 10}),
        SiteEnrolment(name="site-1", cases=5, structures={"Larynx": 5}, heads_only_until=9),
    )
    settings = build_settings_for(2, sites=sites, heads=HEADS, rounds=3, deadline_s=0.2)
    known = {site.name: dict(site.structures) for site in sites}
    updates = {
        name: build_local_update(name, cases=settings.get_site(name).cases, structures=known[name])
        for name in known
    }
    both = simulate(settings, model, updates, tmp_path / "both")
    alone = simulate(settings, model, {"site-0": updates["site-0"]}, tmp_path / "alone")
    assert same_bits({"row": both["encoder.0.weight"]}, {"row": alone["encoder.0.weight"]})
    assert same_bits({"row": both["head.weight"][0]}, {"row": alone["head.weight"][0]})
    assert same_bits({"row": both["head.weight"][1]}, {"row": model["head.weight"][1]})
    assert not same_bits({"row": both["head.weight"][2]}, {"row": model["head.weight"][2]})


def test_a_site_counts_as_served_when_it_says_that_it_holds_the_final_model(tmp_path: Path) -> None:
    settings = build_settings_for(1, rounds=1)
    journal = Journal(tmp_path)
    desk = Desk(settings, journal.audit, clock=lambda: 0.0)
    lost = [False]

    def carrier(frame: bytes) -> bytes:
        answer = desk.answer("site-0", frame)
        if lost[0] and b'"ask":"model"' in frame:
            raise ConnectionResetError
        return answer

    site = Site("site-0", settings, build_local_update("site-0"), MemoryStore(), carrier)

    def watch(event: RoundEvent) -> None:
        if event.kind == "opened":
            assert site.step().kind == "trained"

    run_rounds(settings, MODEL, desk=desk, journal=journal, clock=lambda: 0.0, watch=watch)
    lost[0] = True
    with pytest.raises(ConnectionResetError):
        site.step()
    assert desk.list_served() == set(), "its last piece was read here, and lost on the way"
    lost[0] = False
    assert site.step().kind == "finished"
    assert desk.list_served() == {"site-0"}


def test_run_site_waits_through_an_outage_and_finishes(tmp_path: Path) -> None:
    settings = build_settings_for(1, rounds=3)
    journal = Journal(tmp_path)
    desk = Desk(settings, journal.audit, clock=lambda: 0.0)
    broken = itertools.chain([True, False, True, True, False, False, True] * 3, itertools.repeat(False))

    def carrier(frame: bytes) -> bytes:
        if next(broken):
            raise ConnectionResetError
        return desk.answer("site-0", frame)

    site = Site("site-0", settings, build_local_update("site-0"), MemoryStore(), carrier)
    result: list[Parameters | None] = []
    said: list[Step] = []
    thread = threading.Thread(
        target=lambda: result.append(run_site(site, poll_s=0.001, max_wait_s=0.002, say=said.append))
    )
    thread.start()
    final = run_rounds(settings, MODEL, desk=desk, journal=journal, clock=time.monotonic)
    thread.join(10)
    assert result[0] is not None
    assert same_bits(result[0], final)
    assert Step("waiting", "the coordinator cannot be reached") in said
