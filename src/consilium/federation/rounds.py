"""The federation's main path: open a round, take updates until everyone answered or the deadline passed,
combine, commit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from consilium.errors import ConfigurationError, DataError, FederationError, UpdateRefused
from consilium.federation.combine import (
    Collection,
    Group,
    commit_collected,
    initial_arrays,
    model_schema,
    open_round_of,
    parameters_of,
)
from consilium.federation.desk import Clock, Notice
from consilium.federation.events import RoundEvent, Watch, average_metrics, ignore_event
from consilium.federation.journal import Journal, State
from consilium.federation.messages import max_update_bytes, read_update, wire_schema
from consilium.federation.parameters import Schema
from consilium.federation.settings import FederationSettings
from consilium.federation.strategies import Strategy, build_strategy
from consilium.federation.tensors import Tensors
from consilium.federation.updates import AcceptedUpdate, check_update
from consilium.federation.uploads import Arrival
from consilium.types import Array

LOOK_UP_S = 0.5
"""How often a waiting round looks who is there and says what it waits for."""


@dataclass(frozen=True)
class _Pace:
    """When this process began, and with which round: what was done before says nothing about its seconds."""

    began_s: float
    first_round: int

    def seconds_left(self, now_s: float, done: int, rounds: int) -> float:
        """After round ``done``."""
        return (now_s - self.began_s) / (done + 1 - self.first_round) * (rounds - done - 1)


class Counter(Protocol):
    """What a round needs of the `Desk`; tests bring smaller ones."""

    def publish(self, notice: Notice) -> None: ...
    def receive(self, timeout_s: float) -> Arrival | None: ...
    def settle(self, arrival: Arrival, verdict: str, reason: str = "", *, keep: bool = False) -> None: ...
    def list_present(self) -> set[str]: ...
    def close(self) -> None: ...
    def finish(self, notice: Notice) -> None: ...


Keep = Callable[[AcceptedUpdate], None]
"""Called for every accepted update where the federation's file consents to keep them."""


@dataclass(frozen=True)
class _Run:
    """What every step of one run needs."""

    settings: FederationSettings
    strategy: Strategy
    desk: Counter
    journal: Journal
    clock: Clock
    watch: Watch
    keep: Keep | None

    def tell(
        self,
        kind: str,
        round_number: int,
        *,
        site: str = "",
        detail: str = "",
        accepted: int = 0,
        seconds_left: float = -1.0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.watch(
            RoundEvent(
                kind=kind,
                round_number=round_number,
                rounds=self.settings.rounds,
                site=site,
                detail=detail,
                accepted=accepted,
                seconds_left=seconds_left,
                metrics=metrics or {},
            )
        )


def run_rounds(
    settings: FederationSettings,
    initial: Mapping[str, Array],
    *,
    desk: Counter,
    journal: Journal,
    clock: Clock,
    watch: Watch = ignore_event,
    keep: Keep | None = None,
) -> Group:
    """Run the federation to its end, from the start or from where the journal stands.

    Args:
        settings: What everybody agreed on.
        initial: The first model; ignored when the journal already holds one. Local names are left out.
        desk: Where updates arrive.
        journal: The folder that survives a crash; a run killed anywhere and called again ends with the same
            bits.
        clock: Monotonic seconds; only this machine's clock counts.
        watch: Told what happens.
        keep: Told every accepted update; only with the sites' consent (``settings.keep_updates``).

    Returns:
        The final travelling parameters, read from the journal's folder when asked for.

    Raises:
        ConfigurationError: If the settings do not fit the rule or the journal.
        FederationError: If the quorum is not met within ``give_up_s``, or the journal cannot be written.
    """
    strategy = build_strategy(settings.strategy)
    check_fit(settings, strategy, keep)
    run = _Run(settings, strategy, desk, journal, clock, watch, keep)
    state = journal.state
    if state is None:
        state = journal.start(*initial_arrays(initial, settings, strategy), job_digest=settings.digest)
    if state.job_digest != settings.digest:
        raise ConfigurationError(
            "federation: the journal was begun under other settings. Restore the federation file, or extend "
            "the run."
        )
    pace = _Pace(clock(), state.round_number)
    if state.phase == "COLLECTED":
        state = commit_round(run, state, pace)
    while state.round_number < settings.rounds:
        state = journal.open_round()
        state = collect_round(run, state)
        state = commit_round(run, state, pace)
    desk.finish(_make_notice(run, state))
    run.tell("finished", state.round_number, detail=f"{settings.rounds} rounds are committed")
    return read_model(journal)


def check_fit(settings: FederationSettings, strategy: Strategy, keep: object = None) -> None:
    """Refuse what cannot work before anyone trains.

    Raises:
        ConfigurationError: Which setting, and what to do.
    """
    if settings.quorum < strategy.least_updates:
        raise ConfigurationError(
            f"federation {settings.name}: {settings.strategy.name} needs at least {strategy.least_updates} "
            "updates in "
            f"every round; the quorum is {settings.quorum} of {len(settings.sites)} sites. Raise the "
            "quorum, enrol more "
            "sites, or choose fedavg."
        )
    if strategy.needs_every_update:
        _check_robust(settings, strategy)
    if keep is not None and not settings.keep_updates:
        raise ConfigurationError(
            f"federation {settings.name}: updates are kept only where keep_updates = true says so."
        )


def _check_robust(settings: FederationSettings, strategy: Strategy) -> None:
    """Refuse a robust rule where some part of the model would never be trained, without a word."""
    where, least = f"federation {settings.name}: {settings.strategy.name}", strategy.least_updates
    late = [site.name for site in settings.sites if site.heads_only_until]
    if late and strategy.compares_models:
        raise ConfigurationError(
            f"{where} compares whole models; {late[0]} has heads_only_until. Take that out, or choose "
            "another rule."
        )
    if len(settings.sites) - len(late) < least:
        raise ConfigurationError(
            f"{where} needs at least {least} sites that train the shared part; {len(late)} of "
            f"{len(settings.sites)} have heads_only_until. Enrol more sites, or choose fedavg."
        )
    for structure in settings.heads.structures:
        known = sum(structure in site.structures for site in settings.sites)
        if 0 < known < least:
            raise ConfigurationError(
                f"{where} needs at least {least} sites that contour {structure}; {known} are enrolled with "
                "it. Enrol more of them, take the structure out, or choose fedavg."
            )


def collect_round(run: _Run, state: State) -> State:
    """Take updates until everyone awaited has answered, or the deadline has passed with the quorum."""
    settings, desk = run.settings, run.desk
    notice = _make_notice(run, state)
    opened = open_round_of(run.journal, state, settings, run.strategy)
    # In half precision sites start from the rounded model, whose digest is another one.
    opened = replace(opened, base_digest=notice.model_digest)
    collection = Collection(opened, settings, run.strategy)
    desk.publish(notice)
    run.tell("opened", opened.round_number)
    started = run.clock()
    awaited = list_awaited(settings, state)
    while not awaited <= collection.sites:
        elapsed = run.clock() - started
        if elapsed >= settings.deadline_s and len(collection.sites) >= settings.quorum:
            break
        if elapsed >= settings.give_up_s:
            desk.close()
            raise FederationError(
                f"round {opened.round_number}: needs {settings.quorum} updates; {len(collection.sites)} "
                "arrived within "
                f"{settings.give_up_s:g} s. Missing: {', '.join(sorted(awaited - collection.sites))}. "
                "Resume when they are back."
            )
        limit = settings.deadline_s if elapsed < settings.deadline_s else settings.give_up_s
        arrival = desk.receive(min(limit - elapsed, LOOK_UP_S))
        if arrival is None:
            awaited |= desk.list_present()
            missing = ", ".join(sorted(awaited - collection.sites))
            run.tell(
                "waiting",
                opened.round_number,
                accepted=len(collection.sites),
                seconds_left=limit - elapsed,
                detail=missing,
            )
            continue
        judge(run, arrival, collection, notice)
    desk.close()
    return _close_round(run, collection)


def list_awaited(settings: FederationSettings, state: State) -> set[str]:
    """Sites the round waits for from its start: those of the round before, or all in the first one.

    A site that was absent is not waited for until it is heard again, so that it costs one deadline and not
    many.
    """
    recent = {site for site, number in state.last_counted.items() if number == state.round_number - 1}
    return recent & {s.name for s in settings.sites} or {s.name for s in settings.sites}


def judge(run: _Run, arrival: Arrival, collection: Collection, notice: Notice) -> None:
    """Count one update or refuse it by name; either way the site is told and the round goes on."""
    opened, audit = collection.opened, run.journal.audit
    try:
        if arrival.site in collection.sites:
            raise UpdateRefused(
                arrival.site, opened.round_number, "an update of this site is already counted"
            )
        try:
            update = read_update(arrival.content, max_bytes=notice.max_update_bytes)
        except DataError as fault:
            raise UpdateRefused(arrival.site, opened.round_number, str(fault)) from fault
        accepted = check_update(update, arrival.site, opened, run.settings)
    except UpdateRefused as refusal:
        audit.append("refused", opened.round_number, site=arrival.site, reason=refusal.reason)
        run.desk.settle(arrival, "refused", refusal.reason)
        run.tell("refused", opened.round_number, site=arrival.site, detail=refusal.reason)
        return
    collection.add(accepted)
    if run.keep is not None:
        run.keep(accepted)
    notes = {"clipped_from": accepted.norm} if accepted.scale < 1.0 else {}
    notes |= {"capped_to": float(accepted.weight)} if accepted.capped else {}
    audit.append(
        "accepted",
        opened.round_number,
        site=arrival.site,
        weight=accepted.weight,
        update=arrival.digest,
        **notes,
    )
    run.desk.settle(arrival, "accepted", keep=run.strategy.needs_every_update)
    run.tell(
        "accepted",
        opened.round_number,
        site=arrival.site,
        accepted=len(collection.sites),
        metrics=accepted.metrics,
    )


def _close_round(run: _Run, collection: Collection) -> State:
    """OPEN -> COLLECTED: write the means; nothing of a single site is left afterwards."""
    number = collection.opened.round_number
    absent = sorted({site.name for site in run.settings.sites} - collection.sites)
    run.journal.audit.append("closed", number, sites=len(collection.sites), absent=absent)
    schema = model_schema(run.journal, run.strategy)
    means = run.journal.write("means", number, schema, collection.means())
    collection.drop()
    run.tell(
        "closed", number, accepted=len(collection.sites), detail=f"absent: {', '.join(absent) or 'none'}"
    )
    return run.journal.collect(means, collection.weights, collection.metrics)


def commit_round(run: _Run, state: State, pace: _Pace) -> State:
    """COLLECTED -> COMMITTED: the rule makes the next model from the means, array by array."""
    done = state.round_number
    metrics = average_metrics(state.metrics, state.counted)
    new = commit_collected(run.journal, run.settings, run.strategy)
    left = pace.seconds_left(run.clock(), done, run.settings.rounds)
    run.tell("committed", done, accepted=len(state.counted), metrics=metrics, seconds_left=left)
    return new


def _make_notice(run: _Run, state: State) -> Notice:
    """What the desk tells about the state's round, with the file that sites fetch."""
    settings = run.settings
    schema = model_schema(run.journal, run.strategy, parameters_only=True)
    wire = wire_schema(schema, control=run.strategy.uses_control, half_precision=settings.half_precision)
    name, digest = state.model, state.model_digest
    if settings.half_precision:
        name, digest = run.journal.write(
            "wire", state.round_number, wire, half_precision_arrays(run.journal.read(name), wire)
        )
    options = run.strategy.site_options()
    return Notice(
        round_number=state.round_number,
        rounds=settings.rounds,
        model=run.journal.folder / name,
        model_digest=digest,
        job_digest=state.job_digest,
        site_options=options,
        last_counted=state.last_counted,
        max_update_bytes=max_update_bytes(wire),
    )


def half_precision_arrays(model: Tensors, wire: Schema) -> Iterator[tuple[str, Array]]:
    """The model as it travels in half precision."""
    for name in wire:
        yield name, model[name].astype(wire[name].dtype)


def read_model(journal: Journal) -> Group:
    """The travelling parameters of the journal's last committed model, each read when it is asked for."""
    return parameters_of(journal.read(journal.need_state().model))
