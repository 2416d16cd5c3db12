"""The watch over FLARE's process: what it tells, when it warns, and which end is final."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from consilium.errors import FederationError
from consilium.federation.engine import supervise
from consilium.federation.events import RoundEvent
from consilium.federation.invitation import FEDERATION_TEMPLATE
from consilium.federation.journal import Journal
from consilium.federation.service import CoordinatorFolder

EVENT = RoundEvent(kind="waiting", round_number=0, rounds=2, detail="site-1", seconds_left=9.0)


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def write_status(folder: Path, event: RoundEvent, then: str) -> list[str]:
    """A process that says where it stands, and then does something."""
    path, content = str(folder / "status.json"), json.dumps(asdict(event), default=dict)
    write = f"pathlib.Path({path!r}).write_text({content!r})"
    return program(f"import pathlib, sys, time; {write}; {then}")


def test_a_process_that_gives_no_sign_of_life_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "STALLED_S", 0.5)
    events: list[RoundEvent] = []
    warnings: list[str] = []
    command = write_status(tmp_path, EVENT, "time.sleep(2.5)")
    supervise.supervise_coordinator(command, tmp_path, events.append, warnings.append)
    assert events == [EVENT]
    # Once for each stretch of silence: on a busy machine the start may be one of its own.
    assert len(warnings) in (1, 2)
    assert "no sign of life" in warnings[0]


def test_a_stopped_coordinator_ends_with_its_own_reason(tmp_path: Path) -> None:
    stopped = RoundEvent(kind="stopped", round_number=-1, rounds=2, detail="needs 2 updates; 1 arrived")
    command = write_status(tmp_path, stopped, "sys.exit(3)")
    with pytest.raises(FederationError, match="needs 2 updates; 1 arrived"):
        supervise.supervise_coordinator(command, tmp_path, lambda event: None, print)


def test_a_reason_that_only_reached_the_log_is_found_there(tmp_path: Path) -> None:
    line = f"2026-11-25{supervise.ERROR}journal: the disk is full"
    command = write_status(tmp_path, EVENT, f"print({line!r}); sys.exit(3)")
    with pytest.raises(FederationError, match="the disk is full"):
        supervise.supervise_coordinator(command, tmp_path, lambda event: None, print)


def test_a_second_coordinator_of_a_folder_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    for name in ("status.json", ".model.part", "spool/site-0.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("the first one's")
    (tmp_path / "federation.toml").write_text(FEDERATION_TEMPLATE)
    first = Journal(tmp_path / "journal")
    first.report("refused", "hospital-a", "late")
    (tmp_path / "journal" / ".state.json.part").write_text("the first one's")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FederationError, match="one process at a time may use it"):
        supervise.supervise_coordinator(program("pass"), tmp_path, lambda event: None, print)
    with pytest.raises(FederationError, match="one process at a time may use it"):
        CoordinatorFolder(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    first.close()
    assert CoordinatorFolder(tmp_path).journal.state is None


@pytest.mark.parametrize("code", [0, 1])
def test_a_site_is_started_again_after_an_end_of_the_transport_and_not_after_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(supervise, "RESTART_S", 0.01)
    said: list[str] = []
    line = f"2026-11-25{supervise.ERROR}the federation is not approved"
    text = (
        "import pathlib, sys; marker = pathlib.Path('marker'); first = not marker.exists(); marker.touch()\n"
        f"print({line!r}) if not first else None\n"
        f"sys.exit({code} if first else {supervise.REFUSED})"
    )
    with pytest.raises(FederationError, match="the federation is not approved"):
        supervise.supervise_site(program(text), tmp_path, said.append)
    assert [text for text in said if "started again" in text] == [
        f"the transport ended ({code}); it is started again in 0 s"
    ]
