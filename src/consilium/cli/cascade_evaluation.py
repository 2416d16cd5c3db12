"""What evaluate does with a cascade: FROC page, table by size, whole-scan Dice, readers beside the model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from consilium.cases.dataset import open_dataset
from consilium.cases.files import write_atomically, write_json
from consilium.cli.console import console, print_table, progress_bar
from consilium.inference.cascade_file import load_cascade
from consilium.metrics.detection import Froc
from consilium.metrics.intervals import Interval
from consilium.pages.charts import Chart
from consilium.pages.page import Figure, Section, TableBlock, Text, table_csv, write_page
from consilium.pages.pictures import LUNG_HU, Panel, draw_panels
from consilium.training.cascade_evaluation import (
    AT_FALSE_POSITIVES,
    DEFINITIONS,
    CascadeSummary,
    Chosen,
    EvaluatedScan,
    ScanLabels,
    evaluate_cascade,
    summarise_scans,
    summary_to_json,
    sure_labels,
)
from consilium.training.cascade_run import instance_structures
from consilium.types import Triple

PICTURED_SCANS = 6
PANELS_PER_SCAN = 3
MARGIN_MM = 40.0
SHOWN_FALSE_POSITIVES = 10.0
FEW_SCANS = 20
LARGEST_MM = 100.0


def evaluate_cascade_file(
    file: Path, dataset: Path, case_ids: Sequence[str], chosen: Chosen, out: Path, run_name: str
) -> None:
    """FROC page, JSON and table of a cascade on whole scans."""
    opened = open_dataset(dataset)
    cascade = load_cascade(file)
    ignored = tuple(n for n in instance_structures(opened) if n != cascade.structure)
    chosen = replace(
        chosen,
        ignored=ignored,
        least_readers=chosen.least_readers or int(cascade.card.get("least_readers", 1)),
    )
    scans: list[EvaluatedScan] = []
    pictures: list[tuple[str, bytes]] = []
    with progress_bar() as progress:
        for labels, scan in evaluate_cascade(cascade, opened, case_ids, chosen, progress=progress):
            scans.append(scan)
            if len(pictures) < PICTURED_SCANS and (labels.things or labels.result.instances):
                pictures.append((scan.case_id, draw_scan(labels, chosen.least_confidence)))
    summary = summarise_scans(scans)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "evaluation.csv", table_csv(case_table(scans)).encode())
    write_json(
        out / "evaluation.json",
        {"model": cascade.digest, "settings": vars(chosen) | {"ignored": list(ignored)}}
        | summary_to_json(summary, scans),
    )
    subtitle = f"{run_name}, model {cascade.digest[:12]}: {len(scans)} scans, {summary.froc.nodules} to find"
    sections = evaluation_sections(summary, scans, chosen, pictures)
    write_page(out / "evaluation.html", f"Finding {cascade.structure}", sections, subtitle=subtitle)
    shown = figures_table(summary)
    print_table(shown.title, shown.columns, shown.rows)
    console.print(f"Page: {out / 'evaluation.html'}", markup=False)


def evaluation_sections(
    summary: CascadeSummary,
    scans: Sequence[EvaluatedScan],
    chosen: Chosen,
    pictures: Sequence[tuple[str, bytes]],
) -> list[Section]:
    """The page."""
    caption = f"reference dashed, contours of confidence {chosen.least_confidence:g} and more drawn through."
    found: list[Text | TableBlock | Figure | Chart] = [figures_table(summary), Text(text=DEFINITIONS)]
    if len(scans) < FEW_SCANS:
        said = f"{len(scans)} scans prove nothing about how well this model finds: see the intervals."
        found.insert(0, Text(text=said, kind="warning"))
    return [
        Section(title="How well it finds", blocks=found),
        Section(title="FROC", blocks=[_chart(summary), _sensitivity_table(summary)]),
        Section(title="By size", blocks=[_size_table(summary)]),
        Section(
            title="Pictures",
            blocks=[Figure(caption=f"{case_id}: {caption}", png=png) for case_id, png in pictures],
        ),
        Section(title="Per case", blocks=[case_table(scans)]),
    ]


def figures_table(summary: CascadeSummary) -> TableBlock:
    """The few figures that people ask for first."""
    rows = (
        ("CPM of the cascade", summary.cpm),
        ("CPM of the detector alone", summary.detector_cpm),
        ("whole-scan Dice per thing, a missed one 0", summary.dice),
        ("Dice of the things found", summary.dice_of_found),
        ("contours that touch nothing, per scan", summary.false_contours),
        ("Dice between readers", summary.readers_dice),
        ("Dice of the model with a reader, same things", summary.model_dice),
    )
    return TableBlock(
        title="Figures with 95 % intervals over scans",
        columns=["figure", "estimate", "95 % interval", "scans"],
        rows=[(name, value.estimate, _ends(value), value.count) for name, value in rows],
    )


def draw_scan(labels: ScanLabels, least_confidence: float) -> bytes:
    """Axial cut-outs: things to be found first (the largest), then the surest contours elsewhere."""
    volume, turn = labels.image.to_canonical()
    ours = turn.apply(sure_labels(labels.result, least_confidence))
    reference = None if labels.reference is None else turn.apply(labels.reference)
    places: list[tuple[str, Triple]] = [
        (f"{thing.structure} {thing.number}, {thing.diameter_mm:.1f} mm", thing.centre_lps_mm)
        for thing in sorted(labels.things, key=lambda thing: -thing.diameter_mm)
    ]
    places = places[: PANELS_PER_SCAN - 1]
    places += [
        (f"found {i.number} ({i.confidence:.2f})", i.candidate.centre_lps_mm)
        for i in labels.result.instances
        if i.confidence >= least_confidence
        and all(
            np.linalg.norm(np.subtract(i.candidate.centre_lps_mm, thing.centre_lps_mm)) > thing.diameter_mm
            for thing in labels.things
        )
    ]
    panels = []
    grid = volume.grid
    for title, point in places[:PANELS_PER_SCAN]:
        index = np.rint(grid.affine.to_indices(point)).astype(int)
        z, y, x = (int(np.clip(v, 0, n - 1)) for v, n in zip(index, grid.shape_zyx, strict=True))
        _, sy, sx = grid.spacing_zyx_mm
        rows = slice(max(0, y - round(MARGIN_MM / sy)), y + round(MARGIN_MM / sy) + 1)
        columns = slice(max(0, x - round(MARGIN_MM / sx)), x + round(MARGIN_MM / sx) + 1)
        outlines = {"found": ours[z, rows, columns] > 0}
        if reference is not None:
            outlines["reference"] = reference[z, rows, columns] > 0
        panels.append(
            Panel(
                title=title,
                image=volume.array[z, rows, columns],
                outlines=outlines,
                spacing_yx=(sy, sx),
                window=LUNG_HU,
                dashed=frozenset({"reference"}),
            )
        )
    return draw_panels(panels, colours={"reference": "#e6194b", "found": "#ffe119"})


def case_table(scans: Sequence[EvaluatedScan]) -> TableBlock:
    """One row per scan; those with a missed thing are flagged."""
    rows = []
    for scan in scans:
        found = int(np.isfinite(scan.matches.nodule_scores).sum())
        dice = None if scan.dice is None or scan.dice.mean != scan.dice.mean else scan.dice.mean
        false = None if scan.dice is None else scan.dice.false_positives
        rows.append((scan.case_id, len(scan.things), found, dice, false, scan.contours))
    return TableBlock(
        title="Every scan",
        columns=[
            "case",
            "to be found",
            "found",
            "whole-scan Dice",
            "contours that touch nothing",
            "contours",
        ],
        rows=rows,
        note="The last column counts contours of any confidence.",
        flagged=frozenset(k for k, row in enumerate(rows) if row[2] < row[1]),
    )


def _chart(summary: CascadeSummary) -> Chart:
    return Chart(
        title="Sensitivity at so many false positives per scan",
        x_label="false positives per scan",
        y_label="sensitivity",
        curves={"cascade": _curve(summary.froc), "detector alone": _curve(summary.detector_froc)},
        y_limits=(0.0, 1.0),
    )


def _curve(froc: Froc) -> tuple[list[float], list[float | None]]:
    """Up to ten false positives per scan."""
    kept = froc.false_positives_per_scan <= SHOWN_FALSE_POSITIVES
    return froc.false_positives_per_scan[kept].tolist(), list(froc.sensitivity[kept].tolist())


def _sensitivity_table(summary: CascadeSummary) -> TableBlock:
    return TableBlock(
        title="Sensitivity of the cascade",
        columns=["false positives per scan", "sensitivity", "95 % interval"],
        rows=[(rate, value.estimate, _ends(value)) for rate, value in summary.sensitivities.items()],
    )


def _size_table(summary: CascadeSummary) -> TableBlock:
    rows = [
        (
            f"{row.low_mm:g} to {row.high_mm:g}" if row.high_mm < LARGEST_MM else f"{row.low_mm:g} and more",
            row.things,
            row.sensitivity,
            row.found,
        )
        for row in summary.sizes
    ]
    return TableBlock(
        title="By diameter",
        columns=[
            "diameter mm",
            "things",
            f"sensitivity at {AT_FALSE_POSITIVES:g} false positive per scan",
            "found at any confidence",
        ],
        rows=rows,
    )


def _ends(value: Interval) -> str:
    return f"{value.low:.3f} to {value.high:.3f}" if value.low == value.low else "–"
