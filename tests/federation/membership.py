"""An undisturbed run with a given membership: what a disturbed run must equal bit for bit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from consilium.federation.desk import Desk, Notice
from consilium.federation.journal import Journal
from consilium.federation.local import LocalUpdate
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import FederationSettings
from consilium.federation.simulation import carry_in_memory
from consilium.federation.site import Site
from consilium.federation.store import MemoryStore
from consilium.federation.uploads import Arrival


def read_membership(audit: str, settings: FederationSettings) -> list[set[str]]:
    """Who counted in each round, from the coordinator's log; a round that was opened again counts once."""
    everyone = {site.name for site in settings.sites}
    closed = [line for line in map(json.loads, audit.splitlines()) if line["event"] == "closed"]
    by_round = {line["round"]: everyone - set(line["absent"]) for line in closed}
    assert sorted(by_round) == list(range(settings.rounds))
    return [by_round[number] for number in range(settings.rounds)]


class _Roll:
    """A desk at which exactly the members of a round turn up; its clock jumps, so nobody waits."""

    def __init__(self, desk: Desk, sites: Mapping[str, Site], members: Sequence[set[str]]) -> None:
        self.now = 0.0
        self._desk = desk
        self._sites = sites
        self._members = members
        self._turn: list[Site] = []
        self._present: set[str] = set()
        self._looked = False

    def clock(self) -> float:
        return self.now

    def publish(self, notice: Notice) -> None:
        self._desk.publish(notice)
        self._present = self._members[notice.round_number]
        self._turn = [self._sites[name] for name in sorted(self._present)]
        self._looked = False

    def receive(self, timeout_s: float) -> Arrival | None:
        if not self._looked:
            # The round looks who is there, so that it waits for all of them.
            self._looked = True
            return None
        if not self._turn:
            self.now += timeout_s
            return None
        assert self._turn.pop().step().kind == "trained"
        return self._desk.receive(1.0)

    def settle(self, arrival: Arrival, verdict: str, reason: str = "", *, keep: bool = False) -> None:
        assert verdict == "accepted"
        self._desk.settle(arrival, verdict, reason, keep=keep)

    def list_present(self) -> set[str]:
        return self._present

    def close(self) -> None:
        self._desk.close()

    def finish(self, notice: Notice) -> None:
        self._desk.finish(notice)


def replay(
    settings: FederationSettings,
    model: Parameters,
    updates: Mapping[str, LocalUpdate],
    members: Sequence[set[str]],
    folder: Path,
) -> str:
    """The digest of the final model of a run in which nothing goes wrong and ``members`` take part."""
    journal = Journal(folder)
    desk = Desk(settings, journal.audit, clock=lambda: 0.0, report=journal.report)
    sites = {
        name: Site(name, settings, update, MemoryStore(), carry_in_memory(desk, name))
        for name, update in updates.items()
    }
    roll = _Roll(desk, sites, members)
    final = run_rounds(settings, model, desk=roll, journal=journal, clock=roll.clock)
    assert read_membership((folder / "audit.jsonl").read_text(), settings) == list(members)
    return compute_digest(final)
