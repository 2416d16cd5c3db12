"""Fixtures of the federation's tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERFACES, COUNTERS = Path("/proc/net/dev"), Path("/proc/net/snmp")


def is_isolated() -> bool:
    """Whether this process lives in a network of loopback alone."""
    if not INTERFACES.exists():
        return False
    return [line.split(":")[0].strip() for line in INTERFACES.read_text().splitlines()[2:]] == ["lo"]


def count_unroutable() -> int:
    """How often anything in this network tried to reach an address outside it."""
    names, values = (line.split() for line in COUNTERS.read_text().splitlines() if line.startswith("Ip:"))
    return int(values[names.index("OutNoRoutes")])


@pytest.fixture(autouse=True)
def nothing_tries_to_leave() -> Iterator[None]:
    """In a network of loopback alone (``make test-federation``): no process even tries another address."""
    if not is_isolated():
        yield
        return
    before = count_unroutable()
    yield
    assert count_unroutable() == before, "something tried to connect to an address outside this machine"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync protects from power cuts, which no test makes; a busy disk must not slow hundreds of rounds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
