"""The results in a report: per structure, per site, per scanner, and the worst cases with their pictures."""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.files import read_json
from consilium.errors import ConfigurationError
from consilium.metrics.intervals import bootstrap_mean
from consilium.pages.page import Figure, Section, TableBlock, Text, format_range
from consilium.review.run_page import Blocks

EVALUATION = "evaluation.json"
SEED = 20261123
WORST = 10
WORST_FIRST = "lowest Dice first"
"""In the caption of `evaluate`'s pictures, after the structure's name."""
SHOWN = (
    ("dice", "Dice"),
    ("surface_dice", "surface Dice"),
    ("hd95_mm", "HD95 (mm)"),
    ("mean_surface_distance_mm", "mean surface distance (mm)"),
    ("added_path_length_mm", "added path length (mm)"),
)
UNKNOWN_SCANNER = "unknown scanner"


def result_sections(run: Path, evaluations: Sequence[Path]) -> list[Section]:
    """Results of every evaluation; one that says how to make them where there is none."""
    if not evaluations:
        return [Section(title="Results", blocks=_no_results(run))]
    names = _site_names(evaluations)
    records = {name: read_json(place / EVALUATION) for name, place in zip(names, evaluations, strict=True)}
    sections = []
    for name, record in records.items():
        title = "Results" if len(records) == 1 else f"Results: {name}"
        definitions = Text(text=str(record.get("definitions", "")), kind="note")
        sections.append(Section(title=title, blocks=[*_summary(record), definitions]))
    groups = _groups(records)
    if len({group for group, _ in groups}) > 1:
        sections.append(Section(title="Per site", blocks=_per_group(groups, by_site=len(records) > 1)))
    return [*sections, _worst(records, evaluations)]


def _site_names(evaluations: Sequence[Path]) -> list[str]:
    """What people call each: its folder without a last ``evaluation``; those above where two are alike."""
    folders = [place.resolve() for place in evaluations]
    parts = [(f.parent if f.name == "evaluation" else f).parts for f in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigurationError(
        f"--evaluation: every evaluation must be named once; found {folders[0].name} and others twice."
    )


def _groups(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every compared contour with its site: the evaluation it is of, or of a single one its scanner."""
    if len(records) > 1:
        return [(name, row) for name, record in records.items() for row in record["cases"]]
    (record,) = records.values()
    scanners = record.get("scanners", {})
    return [(str(scanners.get(row["case_id"], UNKNOWN_SCANNER)), row) for row in record["cases"]]


def _per_group(groups: Sequence[tuple[str, Mapping[str, Any]]], *, by_site: bool) -> Blocks:
    names = sorted({name for name, _ in groups})
    structures = sorted({row["structure"] for _, row in groups})
    rows: list[list[object]] = []
    for structure in structures:
        for name in names:
            found = [row for group, row in groups if group == name and row["structure"] == structure]
            values = [math.nan if row.get("dice") is None else float(row["dice"]) for row in found]
            if not found:
                continue
            patients = [str(row.get("patient_id", row["case_id"])) for row in found]
            interval = bootstrap_mean(values, np.random.default_rng(SEED), patients=patients)
            ends = format_range(interval.low, interval.high)
            lowest = min((v for v in values if v == v), default=math.nan)
            rows.append([structure, name, len(found), interval.estimate, ends, lowest])
    what = "site" if by_site else "scanner"
    table = TableBlock(
        title=f"Dice per structure and {what}",
        columns=["structure", what, "cases", "mean Dice", "95 % interval", "lowest Dice"],
        rows=rows,
        note="Intervals resample patients (bootstrap). A site with few patients has a wide one, or none."
        + ("" if by_site else " The dataset does not say from which hospital a case comes; scanners do."),
    )
    return [table]


def _worst(records: Mapping[str, Mapping[str, Any]], evaluations: Sequence[Path]) -> Section:
    cases = [(name, row) for name, record in records.items() for row in record["cases"]]
    measured = [(name, row) for name, row in cases if isinstance(row.get("dice"), int | float)]
    worst = sorted(measured, key=lambda pair: pair[1]["dice"])[:WORST]
    columns = ["case", "structure", *(title for _, title in SHOWN)]
    rows: list[list[object]] = [
        [row["case_id"], row["structure"], *(row.get(field) for field, _ in SHOWN)] for _, row in worst
    ]
    if len(records) > 1:
        columns.insert(0, "site")
        rows = [[name, *row] for (name, _), row in zip(worst, rows, strict=True)]
    table = TableBlock(title=f"The {len(worst)} worst contours by Dice", columns=columns, rows=rows)
    wanted = [(name, row["structure"]) for name, row in worst]
    pictures: Blocks = [
        figure
        for name, place in zip(records, evaluations, strict=True)
        for figure in _pictures(place, [structure for site, structure in wanted if site == name])
    ]
    missing = Text(text="The evaluation's page has no picture of these structures.", kind="note")
    return Section(title="Worst cases", blocks=[table, *(pictures or [missing])])


def _no_results(run: Path) -> Blocks:
    text = (
        "There are no results yet. Make them with: consilium evaluate "
        f"{run.name} DATASET evaluation, then write this report again with --evaluation evaluation."
    )
    return [Text(text=text, kind="warning")]


def _summary(record: Mapping[str, Any]) -> Blocks:
    """Overlap with the counts, and distances with the work left: two tables that fit on paper."""
    counts = ("empty_prediction", "empty_reference")
    return [
        _table(record, "Overlap, means over patients", SHOWN[:2], counts),
        _table(record, "Distances and work left, means over patients", SHOWN[2:], ()),
    ]


def _table(
    record: Mapping[str, Any], title: str, figures: Sequence[tuple[str, str]], counts: Sequence[str]
) -> TableBlock:
    names = {"empty_prediction": "nothing predicted", "empty_reference": "predicted though absent"}
    columns = ["structure", "cases", *(c for _, name in figures for c in (name, "95 % interval"))]
    rows: list[list[object]] = []
    for structure, summary in record["structures"].items():
        row: list[object] = [structure, summary["cases"]]
        for field, _ in figures:
            figure = summary["figures"].get(field, {})
            row += [figure.get("estimate"), format_range(figure.get("low"), figure.get("high"))]
        rows.append([*row, *(summary[count] for count in counts)])
    return TableBlock(title=title, columns=[*columns, *(names[count] for count in counts)], rows=rows)


def _pictures(evaluation: Path, wanted: Sequence[str]) -> list[Figure]:
    """The pictures of the wanted structures' worst cases, taken from the evaluation's page."""
    page = evaluation / "evaluation.html"
    if not page.exists():
        return []
    found = re.findall(
        rf'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)" alt="(([^"]*), {WORST_FIRST}[^"]*)"',
        page.read_text("utf-8"),
    )
    by_structure = {
        html.unescape(name): Figure(caption=html.unescape(caption), png=base64.b64decode(content))
        for content, caption, name in found
    }
    return [by_structure[name] for name in dict.fromkeys(wanted) if name in by_structure]
