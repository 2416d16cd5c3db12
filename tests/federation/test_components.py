"""The components that FLARE's processes load, without FLARE's processes."""

import logging
import os
import queue
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")

from nvflare.apis.event_type import EventType

from consilium.federation.engine.components import CoordinatorComponent
from consilium.federation.engine.supervise import REFUSED
from consilium.federation.invitation import FEDERATION_TEMPLATE


@pytest.mark.parametrize("damage", ["journal", "file"])
def test_a_coordinator_that_cannot_begin_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    codes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", codes.put)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    if damage != "file":
        (tmp_path / "federation.toml").write_text(FEDERATION_TEMPLATE)
    if damage == "journal":
        (tmp_path / "journal").mkdir()
        (tmp_path / "journal" / "state.json").write_text("{}")
    engine = SimpleNamespace(get_cell=lambda: None)
    component = CoordinatorComponent(str(tmp_path))
    with caplog.at_level(logging.ERROR, logger="consilium.federation"):
        component.handle_event(EventType.SYSTEM_START, SimpleNamespace(get_engine=lambda: engine))
        assert codes.get(timeout=30) == REFUSED
    reason = {"journal": "state.json is damaged", "file": "the file must exist"}
    assert reason[damage] in caplog.text
