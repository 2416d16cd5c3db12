"""What the kill tests run as processes: a coordinator or a site, until the federation ends.

Usage: python -m tests.federation.program coordinator FOLDER STRATEGY | site FOLDER STRATEGY NAME
"""

import sys
import time
from pathlib import Path

from consilium.federation.desk import Desk
from consilium.federation.journal import Journal
from consilium.federation.local import LocalTask, LocalUpdate, SiteResult
from consilium.federation.parameters import Parameters, compute_digest
from consilium.federation.rounds import run_rounds
from consilium.federation.settings import FederationSettings, StrategyChoice
from consilium.federation.site import Site, run_site
from consilium.federation.sockets import SocketCarrier, serve_socket
from consilium.federation.store import FolderStore
from tests.federation.toys import (
    build_local_update,
    build_model,
    build_settings_for,
    compute_control_variates,
)

SITES = ("site-0", "site-1", "site-2")


def settings_for(strategy: str) -> FederationSettings:
    """Three sites, all of them needed in every round: whatever is killed, the membership is the same."""
    return build_settings_for(
        3,
        rounds=4,
        quorum=3,
        give_up_s=900.0,
        presence_s=1.0,
        strategy=StrategyChoice(name=strategy),
        local_names=("*.norm.*",),
    )


def build_training(site: str, *, seconds: float = 0.02) -> LocalUpdate:
    """The toy training, slowed down so that kills meet it, with control variates and local normalisation."""
    plain = build_local_update(site)

    def train(parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult:
        time.sleep(seconds)
        start = build_model() | parameters
        result = plain(start, round_number=round_number, task=task)
        control = {}
        if task.wants_control:
            received = {name: start[name] for name in task.correction}
            control = compute_control_variates(
                received, result.parameters, task.correction, steps=5, learning_rate=0.1
            )
        return SiteResult(
            parameters=result.parameters, weight=10, metrics=result.metrics, control_variates=control
        )

    return train


def token_of(site: str) -> bytes:
    """No secret: a test's."""
    return f"token of {site}".encode()


def run_coordinator(folder: Path, strategy: str) -> None:
    """Serve until the end, then a moment longer, so that every site fetches the final model."""
    settings, journal = settings_for(strategy), Journal(folder / "journal")
    desk = Desk(settings, journal.audit, clock=time.monotonic, spool=folder / "spool", report=journal.report)
    with serve_socket(desk, folder / "s", {site: token_of(site) for site in SITES}):
        final = run_rounds(settings, build_model(), desk=desk, journal=journal, clock=time.monotonic)
        (folder / "digest").write_text(compute_digest(final))
        waiting = time.monotonic() + 5
        while time.monotonic() < waiting and not all((folder / f"{s}.digest").exists() for s in SITES):
            time.sleep(0.01)


def run_one_site(folder: Path, strategy: str, name: str) -> None:
    """Take part until the end; write the digest of what the site ends with."""
    store = FolderStore(folder / name)
    site = Site(
        name,
        settings_for(strategy),
        build_training(name),
        store,
        SocketCarrier(folder / "s", name, token_of(name)),
    )
    final = run_site(site, poll_s=0.01, max_wait_s=0.05)
    assert final is not None
    (folder / f"{name}.digest").write_text(compute_digest(final))


if __name__ == "__main__":
    if sys.argv[1] == "coordinator":
        run_coordinator(Path(sys.argv[2]), sys.argv[3])
    elif not (Path(sys.argv[2]) / f"{sys.argv[4]}.digest").exists():
        run_one_site(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
