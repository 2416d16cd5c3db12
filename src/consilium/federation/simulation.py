"""Many sites in one process: the same desk, frames, checks and journal as between hospitals, carried by a
function call.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from consilium.federation.desk import Desk, Notice
from consilium.federation.events import Watch, ignore_event
from consilium.federation.journal import Journal
from consilium.federation.local import LocalUpdate
from consilium.federation.parameters import Parameters
from consilium.federation.rounds import Keep, run_rounds
from consilium.federation.settings import FederationSettings
from consilium.federation.site import Carrier, Site
from consilium.federation.store import FINAL, MemoryStore, SiteStore
from consilium.federation.tensors import encode_tensors
from consilium.federation.uploads import Arrival
from consilium.types import Array

IDLE_S = 0.002
LOOK_UP_S = 0.05


def carry_in_memory(desk: Desk, site: str) -> Carrier:
    """The way from a site to a desk in the same process."""
    return lambda frame: desk.answer(site, frame)


def simulate(
    settings: FederationSettings,
    initial: Mapping[str, Array],
    updates: Mapping[str, LocalUpdate],
    folder: Path,
    *,
    workers: int = 1,
    stores: Callable[[str], SiteStore] = lambda name: MemoryStore(),
    watch: Watch = ignore_event,
    keep: Keep | None = None,
) -> Parameters:
    """Run a whole federation here: the coordinator in this thread, the sites in ``workers`` others.

    Args:
        settings: The federation.
        initial: The first model.
        updates: Site -> its training. Enrolled sites without one stay absent.
        folder: The coordinator's journal; a run that stopped goes on from there.
        workers: Threads that share the sites. With one, sites train in order of name.
        stores: Where each site remembers, and keeps the final model with its own local parameters; in memory
            by default.
        watch: Told what happens.
        keep: Told every accepted update; only with the sites' consent, see `run_rounds`.

    Returns:
        The final travelling parameters.

    Raises:
        FederationError: As `run_rounds`. What a site's training raises ends the run and is raised here.
    """
    with closing(Journal(folder)) as journal:
        desk = Desk(settings, journal.audit, clock=time.monotonic, report=journal.report)
        kept = {n: stores(n) for n in sorted(updates)}
        sites = [Site(n, settings, updates[n], kept[n], carry_in_memory(desk, n)) for n in kept]
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=workers) as pool:
            shares = [sites[index::workers] for index in range(workers)]
            work = [pool.submit(_step_until, stop, share) for share in shares]
            try:
                counter = _Workplace(desk, work)
                final = run_rounds(
                    settings,
                    initial,
                    desk=counter,
                    journal=journal,
                    clock=time.monotonic,
                    watch=watch,
                    keep=keep,
                )
            finally:
                stop.set()
        for site in sites:
            if site.final is None:
                site.step()
            if site.final is not None:
                kept[site.name].write(FINAL, encode_tensors(site.final))
        return dict(final)


def _step_until(stop: threading.Event, share: list[Site]) -> None:
    while share and not stop.is_set():
        kinds = [site.step().kind for site in share if not stop.is_set()]
        if "trained" not in kinds:
            stop.wait(IDLE_S)


class _Workplace:
    """The desk, and an eye on the threads: when a site's training fails, the run ends with that error."""

    def __init__(self, desk: Desk, work: list[Future[None]]) -> None:
        self._desk = desk
        self._work = work

    def publish(self, notice: Notice) -> None:
        self._desk.publish(notice)

    def receive(self, timeout_s: float) -> Arrival | None:
        for thread in self._work:
            if thread.done():
                thread.result()
        return self._desk.receive(min(timeout_s, LOOK_UP_S))

    def settle(self, arrival: Arrival, verdict: str, reason: str = "", *, keep: bool = False) -> None:
        self._desk.settle(arrival, verdict, reason, keep=keep)

    def list_present(self) -> set[str]:
        return self._desk.list_present()

    def close(self) -> None:
        self._desk.close()

    def finish(self, notice: Notice) -> None:
        self._desk.finish(notice)
