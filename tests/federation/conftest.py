"""Fixtures of the federation's tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync protects from power cuts, which no test makes; a busy disk must not slow hundreds of rounds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
