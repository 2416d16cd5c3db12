"""What a run tells while it goes: one small event at a time, for the terminal, a JSONL file, or a test."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from consilium.federation.durable import append_line


@dataclass(frozen=True, kw_only=True)
class RoundEvent:
    """One event of the run.

    Args:
        kind: ``opened``, ``waiting``, ``accepted``, ``refused``, ``closed``, ``committed`` or ``finished``.
        round_number: Counted from 0.
        rounds: How many there will be.
        site: Which site it is about; empty for the round as a whole.
        detail: For people: a reason, or what the run waits for.
        accepted: Number of updates counted so far in this round.
        seconds_left: Until the round's deadline (``waiting``) or until the end at the present pace
            (``committed``); negative while unknown.
        metrics: Figures, weighted over the sites by cases (``committed``), or one site's (``accepted``).
    """

    kind: str
    round_number: int
    rounds: int
    site: str = ""
    detail: str = ""
    accepted: int = 0
    seconds_left: float = -1.0
    metrics: Mapping[str, float] = field(default_factory=dict)


Watch: TypeAlias = Callable[[RoundEvent], None]


def ignore_event(event: RoundEvent) -> None:
    """The default `Watch`: say nothing."""


def write_events(path: Path) -> Watch:
    """A `Watch` that appends every event, with seconds since now, to a JSONL file for the page of curves."""
    began = time.monotonic()

    def watch(event: RoundEvent) -> None:
        record = asdict(event) | {"at_s": round(time.monotonic() - began, 3)}
        append_line(path, json.dumps(record, sort_keys=True, default=dict))

    return watch


def average_metrics(
    metrics: Mapping[str, Mapping[str, float]], weights: Mapping[str, int]
) -> dict[str, float]:
    """Every figure's mean over the sites that report it, weighted by cases; empty if none reports any."""
    sums: dict[str, float] = {}
    totals: dict[str, int] = {}
    for site in sorted(metrics):
        for name, value in metrics[site].items():
            weight = max(1, weights.get(site, 1))
            sums[name] = sums.get(name, 0.0) + weight * value
            totals[name] = totals.get(name, 0) + weight
    return {name: sums[name] / totals[name] for name in sorted(sums)}
