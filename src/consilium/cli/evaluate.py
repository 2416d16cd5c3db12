"""``consilium evaluate``: a model's contours against the reference, as table, JSON and page."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from consilium.cases.case import Case
from consilium.cases.dataset import open_dataset
from consilium.cases.files import write_atomically, write_json
from consilium.cli.cascade_evaluation import evaluate_cascade_file
from consilium.cli.console import console, print_table, progress_bar
from consilium.cli.report_results import WORST_FIRST
from consilium.errors import ConfigurationError
from consilium.inference.cascade_file import find_cascade
from consilium.inference.model import load_model
from consilium.pages.page import Figure, Section, TableBlock, Text, format_range, table_csv, write_page
from consilium.pages.pictures import Panel, draw_panels
from consilium.training.cascade_evaluation import Chosen
from consilium.training.cascade_run import is_cascade_run, open_cascade_run
from consilium.training.evaluation import (
    DEFINITIONS,
    FIGURES,
    CaseMasks,
    Compared,
    StructureSummary,
    evaluate_cases,
    mean_dice,
    summarise,
    to_json,
)
from consilium.training.run_folder import open_run

PICTURED_CASES = 3
"""Of each structure: the cases with the lowest Dice."""

WORK = 5
"""The first figures compare contours; those after them are volumes."""
BANDS = 5
SPLITS = ("validation", "training", "all")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a model file.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset with the reference contours.")],
    out: Annotated[Path, typer.Argument(help="Folder for the table, the JSON and the page.")],
    split: Annotated[
        str, typer.Option(help="validation or training (of the run's split), or all cases of the dataset.")
    ] = "",
    reader: Annotated[str | None, typer.Option(help="Whose contours are the reference.")] = None,
    least_readers: Annotated[
        int, typer.Option(help="Of a cascade: ignore what fewer readers saw; 0: as it was trained.")
    ] = 0,
) -> None:
    """Compare a model's contours with the reference by overlap, distance and work left.

    A cascade is judged by what it finds: FROC and CPM by LUNA16's rules, by size, whole-scan Dice, and the
    readers' own agreement beside the model's.
    """
    opened = open_dataset(dataset)
    cascade = find_cascade(run)
    if cascade is not None:
        evaluate_cascade_file(
            cascade,
            dataset,
            _chosen_cases(run, opened.case_ids, split),
            Chosen(least_readers=least_readers, reader=reader),
            out,
            run.name,
        )
        return
    model = load_model(run)
    case_ids = _chosen_cases(run, opened.case_ids, split)
    rows: list[Compared] = []
    worst: dict[str, list[tuple[float, Panel]]] = {name: [] for name in model.structures}
    with progress_bar() as progress:
        for masks, compared in evaluate_cases(model, opened, case_ids, reader=reader, progress=progress):
            rows.extend(compared)
            _keep_worst(worst, masks, compared)
    summaries = summarise(rows, model.structures)
    out.mkdir(parents=True, exist_ok=True)
    table = _case_table(rows)
    write_atomically(out / "evaluation.csv", table_csv(table).encode())
    scanners = {row.case_id: scanner_of(opened.case(row.case_id)) for row in rows}
    record = {"model": model.digest, "scanners": scanners, **to_json(rows, summaries)}
    write_json(out / "evaluation.json", record)
    sections = [
        Section(
            title="Per structure",
            blocks=[_summary_table(summaries), Text(text=DEFINITIONS), _volume_table(summaries)],
        ),
        Section(
            title="The worst of each structure",
            blocks=[
                Figure(
                    caption=f"{name}, {WORST_FIRST}: reference dashed, prediction drawn through, in the "
                    "slice where they differ most.",
                    png=_draw([panel for _, panel in found]),
                )
                for name, found in worst.items()
                if found
            ],
        ),
        Section(title="Doubt", blocks=[reliability(rows), Text(text=DOUBT)]),
        Section(title="Per case", blocks=[table]),
    ]
    write_page(
        out / "evaluation.html",
        "Evaluation",
        sections,
        subtitle=f"{run.name}, model {model.digest[:12]}, {len({row.case_id for row in rows})} cases",
    )
    shown = _summary_table(summaries)
    print_table(shown.title, shown.columns[:5], [row[:5] for row in shown.rows])
    console.print(f"Mean Dice over structures: {mean_dice(summaries):.4f}", markup=False)
    console.print(f"Page: {out / 'evaluation.html'}", markup=False)


def _keep_worst(
    worst: dict[str, list[tuple[float, Panel]]], masks: CaseMasks, compared: Sequence[Compared]
) -> None:
    """Put a case's structures among the worst so far, lowest Dice first; the others are forgotten."""
    drawn = None
    for row in compared:
        dice, found = row.figures.dice, worst[row.structure]
        if dice != dice or (len(found) == PICTURED_CASES and dice >= found[-1][0]):
            continue
        drawn = drawn or _panels(masks)
        panel = drawn[row.structure]
        title = f"{masks.case_id}, Dice {dice:.3f}, {panel.title.removeprefix(row.structure + ', ')}"
        found.append((dice, replace(panel, title=title)))
        found.sort(key=lambda kept: kept[0])
        del found[PICTURED_CASES:]


def scanner_of(case: Case) -> str:
    """Manufacturer and model, as far as they are known."""
    known = (case.provenance.scanner.get(key) for key in ("Manufacturer", "ManufacturerModelName"))
    return " ".join(str(part) for part in known if part) or "unknown scanner"


def draw_case(masks: CaseMasks) -> bytes:
    """One axial slice per structure: the one on which the two contours differ most."""
    return _draw(list(_panels(masks).values()))


def _panels(masks: CaseMasks) -> dict[str, Panel]:
    volume, turn = masks.image.to_canonical()
    spacing = volume.grid.spacing_zyx_mm
    panels = {}
    for name, reference in masks.references.items():
        truth, ours = turn.apply(reference), turn.apply(masks.predictions[name])
        differing = (truth ^ ours).sum(axis=(1, 2))
        z = int(np.argmax(differing if differing.any() else truth.sum(axis=(1, 2))))
        panels[name] = Panel(
            title=f"{name}, slice {z + 1} of {len(differing)}",
            # Copies: views would keep whole volumes alive.
            image=volume.array[z].copy(),
            outlines={f"{name} (reference)": truth[z].copy(), name: ours[z].copy()},
            spacing_yx=(spacing[1], spacing[2]),
            dashed=frozenset({f"{name} (reference)"}),
        )
    return panels


def _draw(panels: Sequence[Panel]) -> bytes:
    colours = {
        label: "#e6194b" if label in panel.dashed else "#3cb44b"
        for panel in panels
        for label in panel.outlines
    }
    return draw_panels(panels, colours=colours)


def reliability(rows: list[Compared]) -> TableBlock:
    """Mean expected and kept Dice in bands of doubt: alike where a doubt figure can be believed."""
    pairs = [(1 - row.doubt, row.figures.dice) for row in rows if row.doubt == row.doubt]
    pairs = [(expected, kept) for expected, kept in pairs if kept == kept]
    cells: list[list[object]] = []
    for band in range(BANDS):
        inside = [pair for pair in pairs if min(BANDS - 1, int(pair[0] * BANDS)) == band]
        if inside:
            expected, kept = np.mean(inside, axis=0)
            name = f"{band / BANDS:.1f} to {(band + 1) / BANDS:.1f}"
            cells.append([name, len(inside), float(expected), float(kept)])
    return TableBlock(
        title="Reliability of the doubt figure",
        columns=["expected Dice", "contours", "mean expected", "mean Dice"],
        rows=cells,
    )


DOUBT = (
    "The expected Dice (one minus the doubt) comes from the probabilities alone and was calibrated on the "
    "validation patients of the training; on those very patients it looks better than it is."
)


def _chosen_cases(run: Path, known: tuple[str, ...], split: str) -> tuple[str, ...]:
    split = split or ("validation" if run.is_dir() else "all")
    if split not in SPLITS:
        raise ConfigurationError(f"--split: must be one of {SPLITS}; got {split!r}.")
    if split == "all":
        return known
    if not run.is_dir():
        raise ConfigurationError(
            "--split: a model file does not know its split. Use --split all, or name the run."
        )
    opened = (open_cascade_run(run) if is_cascade_run(run) else open_run(run)).split
    wanted = opened.validation if split == "validation" else opened.training
    missing = sorted(set(wanted) - set(known))
    if missing:
        raise ConfigurationError(
            f"--split {split}: the dataset must hold the run's cases; {len(missing)} are missing, first "
            f"{missing[0]}. Use --split all for another dataset."
        )
    return wanted


def _summary_table(summaries: list[StructureSummary]) -> TableBlock:
    columns = ["structure", "cases"]
    for _, title in FIGURES[:WORK]:
        columns += [title, "95 % interval"]
    columns += ["only reference empty", "only prediction empty", "both empty"]
    rows = []
    for summary in summaries:
        row: list[object] = [summary.structure, summary.cases]
        for field, _ in FIGURES[:WORK]:
            interval = summary.intervals[field]
            row += [interval.estimate, format_range(interval.low, interval.high)]
        row += [summary.empty_reference, summary.empty_prediction, summary.empty_both]
        rows.append(row)
    return TableBlock(
        title="Means over patients",
        columns=columns,
        rows=rows,
        note="Distances and added path length leave out cases with one mask empty; Dice and surface Dice "
        "count them as 0. Cases with both empty have no figure.",
    )


def _volume_table(summaries: list[StructureSummary]) -> TableBlock:
    fields = [field for field, _ in FIGURES[WORK:]]
    rows = [(s.structure, s.cases, *(s.intervals[field].estimate for field in fields)) for s in summaries]
    columns = ["structure", "cases", *(title for _, title in FIGURES[WORK:])]
    return TableBlock(title="Mean volumes", columns=columns, rows=rows)


def _case_table(rows: list[Compared]) -> TableBlock:
    columns = ["case", "structure", *(title for _, title in FIGURES), "empty"]
    cells: list[list[object]] = []
    for row in rows:
        values = [float(getattr(row.figures, field)) for field, _ in FIGURES]
        empty = row.figures.empty
        cells.append(
            [
                row.case_id,
                row.structure,
                *(v if math.isfinite(v) else None for v in values),
                "" if empty == "neither" else empty,
            ]
        )
    flagged = frozenset(k for k, row in enumerate(rows) if row.figures.empty != "neither")
    return TableBlock(title="Every case and structure", columns=columns, rows=cells, flagged=flagged)
