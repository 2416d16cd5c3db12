"""What a coordinator's and a hospital's process do, whatever carries their frames."""

import contextlib
import importlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.combine import Group
from consilium.federation.desk import Desk
from consilium.federation.durable import remove_leftovers, write_durably
from consilium.federation.events import RoundEvent, Watch, write_events
from consilium.federation.federation_file import check_approval, read_federation_file, read_site_file
from consilium.federation.journal import Journal
from consilium.federation.local import LocalUpdate
from consilium.federation.parameters import Parameters
from consilium.federation.rounds import run_rounds
from consilium.federation.site import Carrier, Site, Step, run_site
from consilium.federation.store import FINAL, FolderStore
from consilium.federation.tensors import Tensors, encode_tensors, write_tensors

INITIAL = "initial.safetensors"
LINGER_S = 120.0
MAX_WAIT_S = 5.0
"""A try costs next to nothing, and a hospital that is back should not sleep through a round."""


class CoordinatorFolder:
    """The folder of one federation at the coordinator: the file, the first model, the journal, the progress.

    Args:
        folder: Holds ``federation.toml`` and ``initial.safetensors``; the rest is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings, self.coordinator = read_federation_file(folder / "federation.toml")
        # First of all: it refuses a second process, which must touch nothing here.
        self.journal = Journal(folder / "journal")
        remove_leftovers(folder)
        spool, report = folder / "spool", self.journal.report
        self.desk = Desk(self.settings, self.journal.audit, clock=time.monotonic, spool=spool, report=report)

    def run(self, watch: Watch | None = None, *, linger_s: float = LINGER_S) -> Group:
        """Run or resume the rounds, keep the final model, and wait until the sites have fetched it.

        Raises:
            FederationError: As `run_rounds`; the reason is also in ``status.json``.
        """
        tell = watch_folder(self.folder, watch)
        initial = self.folder / INITIAL
        if self.journal.state is None and not initial.is_file():
            raise ConfigurationError(
                f"federation folder: {INITIAL} must hold the first model; it is missing."
            )
        first = Tensors(initial) if self.journal.state is None else {}
        try:
            final = run_rounds(
                self.settings, first, desk=self.desk, journal=self.journal, clock=time.monotonic, watch=tell
            )
        except FederationError as fault:
            tell(stopped_event(self.settings.rounds, fault))
            raise
        write_tensors(self.folder / FINAL, final.schema, final.items())
        self._hand_out(linger_s)
        return final

    def _hand_out(self, linger_s: float) -> None:
        """Wait until the sites that are there, or were in the last round, have fetched the final model."""
        state = self.journal.need_state()
        last = {s for s, number in state.last_counted.items() if number == state.round_number - 1}
        until = time.monotonic() + linger_s
        while time.monotonic() < until:
            if last | self.desk.list_present() <= self.desk.list_served():
                return
            time.sleep(0.05)


def watch_folder(folder: Path, watch: Watch | None = None) -> Watch:
    """A `Watch` that keeps a coordinator's folder up to date for whoever looks at it, and tells ``watch``."""
    log = write_events(folder / "progress.jsonl")

    def tell(event: RoundEvent) -> None:
        # What is told is not what is kept: on a full disk the journal says so and ends the run.
        with contextlib.suppress(OSError):
            if event.kind not in ("waiting", "stopped"):
                log(event)
            # As a whole, so that whoever looks never sees a part; not synced, as the next event replaces it.
            content = json.dumps(asdict(event), default=dict).encode()
            write_durably(folder / "status.json", content, sync=False)
        if watch is not None and event.kind != "stopped":
            watch(event)

    return tell


def stopped_event(rounds: int, fault: FederationError) -> RoundEvent:
    """What is told when a run ends early."""
    return RoundEvent(kind="stopped", round_number=-1, rounds=rounds, detail=str(fault))


def read_status(folder: Path) -> RoundEvent | None:
    """The last event of a coordinator's run; None before the first."""
    path = folder / "status.json"
    if not path.is_file():
        return None
    return RoundEvent(**json.loads(path.read_text(encoding="utf-8")))


def load_training(site_file: Path, training: str) -> LocalUpdate:
    """The hospital's own training function, by the name in the hospital's own file.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    module, _, function = training.partition(":")
    try:
        build: Callable[[Path], LocalUpdate] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as fault:
        raise ConfigurationError(
            f"{site_file.name}: training {training} cannot be imported here: {fault}."
        ) from fault
    return build(site_file)


def take_part(
    site_file: Path, carrier: Carrier, *, say: Callable[[Step], None] = lambda step: None
) -> Parameters | None:
    """Join a federation from a site's file and stay until it ends.

    Returns:
        The final model with the site's own local parameters; also kept as ``memory/final.safetensors``.

    Raises:
        ConfigurationError: If the files are wrong or the federation is not approved.
    """
    file, settings, _ = read_site_file(site_file)
    check_approval(file, settings)
    store = FolderStore(site_file.parent / "memory")
    try:
        site = Site(file.name, settings, load_training(site_file, file.training), store, carrier)
        final = run_site(
            site,
            poll_s=file.poll_s,
            max_wait_s=MAX_WAIT_S,
            heartbeat_s=max(0.05, settings.presence_s / 3),
            say=say,
        )
        if final is not None:
            store.write(FINAL, encode_tensors(final))
        return final
    finally:
        store.close()
