"""What a federation's folder at the coordinator tells: rounds, who is here, who is late, curves per site."""

import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.pages.charts import Chart
from consilium.pages.page import Section, TableBlock, Text
from consilium.review.run_page import Blocks, read_lines, say_duration

FILE, LOG, STATUS = "federation.toml", "progress.jsonl", "status.json"
SILENT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SiteLine:
    """Where one site stands.

    Args:
        name: As enrolled.
        now: ``counted``, ``late`` (awaited and not there), ``refused`` or ``not heard of``.
        rounds_counted: Number of rounds in which its update counted.
        last_counted: The latest of them, from 0; -1 for none.
        refusal: The latest reason for a refusal; empty for none.
    """

    name: str
    now: str
    rounds_counted: int
    last_counted: int
    refusal: str


def federation_sections(folder: Path) -> list[Section]:
    """State, sites and curves of a federation."""
    events = read_lines(folder / LOG)
    status = _status(folder)
    sites = _enrolled(folder) or sorted({e["site"] for e in events if e.get("site")})
    return [
        Section(title="Where it stands", blocks=_state(folder, events, status)),
        Section(title="Sites", blocks=[_site_table(site_lines(sites, events, status))]),
        Section(title="Curves", blocks=_charts(events, sites)),
        Section(title="Rounds", blocks=[_round_table(events)]),
    ]


def federation_summary(folder: Path) -> str:
    """In one line: how far, with whom."""
    events, status = read_lines(folder / LOG), _status(folder)
    done = max((int(e["round_number"]) + 1 for e in events if e.get("kind") == "committed"), default=0)
    last = status or (events[-1] if events else {})
    sites = _enrolled(folder) or sorted({e["site"] for e in events if e.get("site")})
    return (
        f"{len(sites)} sites, {done} of {last.get('rounds', '?')} rounds; {last.get('kind', 'not started')}"
    )


def site_lines(
    sites: Sequence[str], events: Sequence[Mapping[str, Any]], status: Mapping[str, Any]
) -> list[SiteLine]:
    """One line per site, from the events and the status; a round that was opened again counts anew."""
    counted: dict[str, set[int]] = {name: set() for name in sites}
    refusals: dict[str, tuple[int, str]] = {}
    here: set[str] = set()
    current = -1
    for event in events:
        kind, number, site = event.get("kind"), int(event.get("round_number", -1)), str(event.get("site", ""))
        if kind == "opened":
            current, here = number, set()
            for rounds in counted.values():
                rounds.discard(number)
        elif kind == "accepted":
            here.add(site)
            counted.setdefault(site, set()).add(number)
        elif kind == "refused":
            refusals[site] = (number, str(event.get("detail", "")))
    waiting = status.get("kind") == "waiting" and status.get("round_number") == current
    late = set(str(status.get("detail", "")).split(", ")) if waiting else set()
    lines = []
    for name, rounds in sorted(counted.items()):
        refused = refusals.get(name)
        if name in here:
            now = "counted"
        elif refused is not None and refused[0] == current:
            now = "refused"
        else:
            now = "late" if name in late else "not heard of"
        lines.append(
            SiteLine(
                name=name,
                now=now,
                rounds_counted=len(rounds),
                last_counted=max(rounds, default=-1),
                refusal=refused[1] if refused else "",
            )
        )
    return lines


def _state(folder: Path, events: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> Blocks:
    if not status and not events:
        return [Text(text="No round was opened yet.")]
    last = status or events[-1]
    kind = str(last.get("kind", ""))
    committed = [e for e in events if e.get("kind") == "committed"]
    done = max((int(e["round_number"]) + 1 for e in committed), default=0)
    left = float(committed[-1].get("seconds_left", -1)) if committed else -1.0
    age_s = time.time() - (folder / (STATUS if status else LOG)).stat().st_mtime
    rows: list[tuple[str, object]] = [
        ("rounds committed", f"{done} of {last.get('rounds', '?')}"),
        ("state", kind),
        ("time left at this pace", say_duration(left) if left >= 0 else "unknown"),
        ("last sign of the coordinator", f"{say_duration(age_s)} ago"),
    ]
    if kind == "waiting":
        rows.append(("waits for", last.get("detail")))
        rows.append(("updates so far", last.get("accepted")))
        rows.append(("until the deadline", say_duration(float(last.get("seconds_left", -1)))))
    blocks: Blocks = [TableBlock(title="Now", columns=["what", "value"], rows=rows)]
    if kind == "stopped":
        blocks.append(Text(text=str(last.get("detail", "")), kind="warning"))
    elif kind != "finished" and age_s > SILENT_S:
        text = "The coordinator has been silent. Start it again: nothing that was committed is lost."
        blocks.append(Text(text=text, kind="warning"))
    return blocks


def _site_table(lines: Sequence[SiteLine]) -> TableBlock:
    rows = [
        (x.name, x.now, x.rounds_counted, None if x.last_counted < 0 else x.last_counted + 1, x.refusal)
        for x in lines
    ]
    return TableBlock(
        title="Who is here, who is late",
        columns=["site", "this round", "rounds counted", "last round counted", "last refusal"],
        rows=rows,
        flagged=frozenset(k for k, x in enumerate(lines) if x.now in {"late", "refused"}),
    )


def _charts(events: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> Blocks:
    means: dict[str, dict[int, float]] = {}
    by_site: dict[str, dict[str, dict[int, float]]] = {}
    for event in events:
        number = int(event.get("round_number", 0)) + 1
        for name, value in (event.get("metrics") or {}).items():
            if event.get("kind") == "committed":
                means.setdefault(name, {})[number] = value
            elif event.get("kind") == "accepted":
                by_site.setdefault(name, {}).setdefault(str(event.get("site")), {})[number] = value
    blocks: Blocks = []
    for name in sorted(set(means) | set(by_site)):
        curves = {"all sites, weighted by cases": _curve(means.get(name, {}))}
        curves |= {site: _curve(values) for site, values in sorted(by_site.get(name, {}).items())}
        blocks.append(Chart(title=name, x_label="round", y_label=name, curves=curves))
    return blocks or [Text(text="No site has reported a figure yet.")]


def _curve(values: Mapping[int, float]) -> tuple[list[float], list[float | None]]:
    rounds = sorted(values)
    return [float(number) for number in rounds], [values[number] for number in rounds]


def _round_table(events: Sequence[Mapping[str, Any]]) -> TableBlock:
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        row = rows.setdefault(int(event.get("round_number", 0)), {"refused": 0})
        kind = event.get("kind")
        if kind == "opened":
            row.update(refused=0, committed="")
        elif kind == "refused":
            row["refused"] += 1
        elif kind == "closed":
            row.update(accepted=event.get("accepted"), detail=event.get("detail"))
        elif kind == "committed":
            row["committed"] = "yes"
    cells = [
        (number + 1, row.get("accepted"), row["refused"], row.get("detail", ""), row.get("committed", ""))
        for number, row in sorted(rows.items(), reverse=True)
        if "accepted" in row or row["refused"] or "committed" in row
    ]
    return TableBlock(
        title="Round by round, the latest first",
        columns=["round", "updates", "refused", "sites", "committed"],
        rows=cells,
    )


def _status(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _enrolled(folder: Path) -> list[str]:
    try:
        table = tomllib.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return sorted(str(site["name"]) for site in table.get("sites", []) if "name" in site)
