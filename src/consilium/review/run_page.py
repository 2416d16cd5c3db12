"""What a run's folder tells while it trains and afterwards; read as plain JSON, so torch is not needed."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consilium.cases.files import read_json
from consilium.pages.charts import Chart
from consilium.pages.page import Figure, Section, TableBlock, Text

CONFIG, LOG, SPLIT = "config.json", "log.jsonl", "split.json"
QUIET_S = 3600.0

Blocks = list[Text | TableBlock | Figure | Chart]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSONL file; empty if it is absent, without a last line that is still being written."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def say_duration(seconds: float) -> str:
    """Seconds as people say them; "unknown" for NaN."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def seconds_left(budget: Mapping[str, Any], last: Mapping[str, Any]) -> float:
    """Until the budget is spent, at the pace so far; NaN if the log does not say, 0 when it is spent."""
    elapsed = float(last.get("elapsed_s") or math.nan)
    if budget.get("minutes"):
        return max(0.0, 60 * float(budget["minutes"]) - elapsed)
    for unit, key in (("steps", "step"), ("epochs", "epoch")):
        done = float(last.get(key) or 0)
        if budget.get(unit) and done > 0:
            return max(0.0, elapsed * (float(budget[unit]) - done) / done)
    return math.nan


def run_sections(folder: Path) -> list[Section]:
    """State, curves, split and plan of a run.

    Raises:
        DatasetError: ``config.json`` is missing or no JSON.
    """
    record = read_json(folder / CONFIG)
    log = read_lines(folder / LOG)
    return [
        Section(title="Where it stands", blocks=_state(folder, record, log)),
        Section(title="Curves", blocks=_curves(record, log)),
        Section(title="Split", blocks=_split(folder)),
        Section(title="Plan", blocks=plan_blocks(record)),
        Section(title="Made with", blocks=[environment_table(record)]),
    ]


def run_summary(folder: Path) -> str:
    """In one line: how good, and how far."""
    record, log = read_json(folder / CONFIG), read_lines(folder / LOG)
    if not log:
        return "no validation yet"
    best = next((entry for entry in reversed(log) if entry.get("best")), log[-1])
    left = seconds_left(record.get("budget", {}), log[-1])
    dice = _number(best.get("validation", {}).get("mean"))
    said = "no validation Dice" if math.isnan(dice) else f"mean validation Dice {dice:.2f}"
    return f"{said}; " + ("the budget is spent" if left == 0 else f"{say_duration(left)} left")


def _state(folder: Path, record: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Blocks:
    budget = " and ".join(f"{value:g} {unit}" for unit, value in record.get("budget", {}).items() if value)
    if not log:
        return [Text(text=f"No validation yet: the first one writes the first point. Budget: {budget}.")]
    last = log[-1]
    best = [entry for entry in log if entry.get("best")]
    left = seconds_left(record.get("budget", {}), last)
    age_s = time.time() - (folder / LOG).stat().st_mtime
    rows: list[tuple[str, object]] = [
        ("steps", last.get("step")),
        ("epochs", last.get("epoch")),
        ("time trained", say_duration(float(last.get("elapsed_s") or math.nan))),
        ("budget", budget),
        ("time left", "none: the budget is spent" if left == 0 else say_duration(left)),
        ("last validation", f"{say_duration(age_s)} ago"),
        ("mean validation Dice, last", _number(last.get("validation", {}).get("mean"))),
    ]
    if best:
        rows += [
            ("mean validation Dice, kept", _number(best[-1]["validation"].get("mean"))),
            ("kept at step", best[-1].get("step")),
        ]
    blocks: Blocks = [TableBlock(title="Now", columns=["what", "value"], rows=rows)]
    if left > 0 and age_s > QUIET_S:
        blocks.append(
            Text(text="Nothing was written for a long time. Go on with: consilium train DATASET RUN --resume")
        )
    if any(entry.get("overfitting") for entry in log):
        blocks.append(Text(text="Over-fitting was seen; the marks in the curves say when.", kind="warning"))
    return blocks


def _curves(record: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> Blocks:
    epochs = [float(entry.get("epoch") or 0) for entry in log]
    names = record.get("plan", {}).get("structures", [])
    marks = {
        f"over-fitting {k}": e["epoch"] for k, e in enumerate((x for x in log if x.get("overfitting")), 1)
    }
    best = [entry["epoch"] for entry in log if entry.get("best")]
    if best:
        marks["kept"] = best[-1]
    dice = {
        "mean, training batches": (epochs, [entry.get("training_mean") for entry in log]),
        "mean, validation": (epochs, [entry.get("validation", {}).get("mean") for entry in log]),
    }
    per_structure = {
        name: (epochs, [e.get("validation", {}).get("structures", {}).get(name) for e in log])
        for name in names
    }
    loss = {"loss": (epochs, [entry.get("loss") for entry in log])}
    common: dict[str, Any] = {"x_label": "epoch", "y_label": "Dice", "y_limits": (0.0, 1.0)}
    return [
        Chart(title="Dice, mean over structures", curves=dice if log else {}, marks=marks, **common),
        Chart(
            title="Dice per structure, whole validation volumes",
            curves=per_structure if log else {},
            marks=marks,
            **common,
        ),
        Chart(title="Loss", x_label="epoch", y_label="loss", curves=loss if log else {}),
    ]


def _split(folder: Path) -> Blocks:
    splits = read_json(folder / SPLIT).get("splits", []) if (folder / SPLIT).exists() else []
    if not splits:
        return [Text(text="The run has no split.")]
    rows = [(case, part) for part in ("validation", "training") for case in sorted(splits[0].get(part, []))]
    counts = {part: len(splits[0].get(part, [])) for part in ("training", "validation")}
    text = f"{counts['training']} cases train, {counts['validation']} validate; no patient does both."
    return [Text(text=text), TableBlock(title="Cases", columns=["case", "part"], rows=rows)]


def plan_blocks(record: Mapping[str, Any]) -> Blocks:
    """The plan and what a person decided, as tables."""
    plan, config = record.get("plan", {}), record.get("config", {})
    blocks: Blocks = [Text(text=reason) for reason in plan.get("reasons", [])]
    flat = [(key, value) for key, value in _flat(plan) if not key.startswith("reasons")]
    blocks.append(TableBlock(title="Computed from the data", columns=["setting", "value"], rows=flat))
    blocks.append(TableBlock(title="Decided by a person", columns=["setting", "value"], rows=_flat(config)))
    return blocks


def environment_table(record: Mapping[str, Any]) -> TableBlock:
    """Versions and machine."""
    return TableBlock(
        title="Versions and machine", columns=["what", "value"], rows=_flat(record.get("environment", {}))
    )


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, int | float) else _words(value)))
    return rows


def _words(value: object) -> str:
    if value is None:
        return "–"
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
