"""``consilium learning-curve``: what would more patients bring?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from consilium.cases.dataset import open_dataset
from consilium.cases.files import write_atomically, write_json
from consilium.cli.console import INTERRUPTED, console, print_table, progress_bar, stop_on_interrupt
from consilium.cli.train import read_settings
from consilium.pages.charts import Chart
from consilium.pages.page import Section, TableBlock, Text, table_csv, write_page
from consilium.training.config import Budget
from consilium.training.learning_curve import SHARES, Fit, Point, fit_curve, run_learning_curve

FIELD_GUESS = 5000
SEED = 20261123


def learning_curve(
    dataset: Annotated[Path, typer.Argument(help="Dataset to learn from.")],
    out: Annotated[Path, typer.Argument(help="Folder of the work; the same one goes on.")],
    minutes: Annotated[float | None, typer.Option(help="Minutes per training.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per training.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings per number of patients.")] = 3,
    network: Annotated[str, typer.Option(help="unet3d or iunet.")] = "iunet",
    structures: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
) -> int:
    """Train on growing parts of the patients, fit Dice against their number, say what more would bring."""
    opened = open_dataset(dataset)
    config = read_settings(structures=structures, spacing="", scale_weights="", network=network)
    if minutes is None and steps is None:
        minutes = 10.0
    budget = Budget(minutes=minutes, steps=steps)
    with stop_on_interrupt() as should_stop, progress_bar() as progress:
        points = run_learning_curve(
            opened, out, config, budget, seeds=range(seeds), progress=progress, should_stop=should_stop
        )
    if should_stop():
        console.print(f"Interrupted after {len(points)} trainings; the same command goes on.", markup=False)
        return INTERRUPTED
    table, figures = answer(points)
    write_json(out / "learning-curve.json", [vars(point) for point in points])
    write_atomically(out / "learning-curve.csv", table_csv(table).encode())
    sections = [
        Section(title="What more patients would bring", blocks=[table, Text(text=CAVEAT, kind="note")]),
        Section(title="Curves", blocks=figures),
    ]
    write_page(out / "learning-curve.html", "How many more patients?", sections)
    print_table(table.title, table.columns, table.rows)
    console.print(f"Page: {out / 'learning-curve.html'}", markup=False)
    return 0


CAVEAT = (
    "The interval knows the spread between seeds and subsets of these patients, and the fitted law "
    "Dice = ceiling − gap · patients^(−speed). It does not know how the law changes far beyond the "
    f"measured range, nor a longer training or a larger network; {FIELD_GUESS} patients are an extrapolation."
)


def answer(points: Sequence[Point]) -> tuple[TableBlock, list[Chart]]:
    """The table (one row per structure) and one picture per structure."""
    most = max(point.patients for point in points)
    rows: list[list[object]] = []
    figures = []
    for name in points[0].dice:
        known = [(p.patients, value) for p in points if (value := p.dice[name]) is not None]
        fit = fit_curve([n for n, _ in known], [v for _, v in known], np.random.default_rng(SEED))
        row: list[object] = [name, len(known)]
        for patients in (most, 2 * most, FIELD_GUESS):
            row += _interval(fit, patients)
        rows.append(row)
        figures.append(_chart(name, known, fit, most))
    columns = ["structure", "trainings"]
    for patients in (most, 2 * most, FIELD_GUESS):
        columns += [f"Dice at {patients} patients", "95 % interval"]
    return TableBlock(title="Dice against the number of patients", columns=columns, rows=rows), figures


def _interval(fit: Fit | None, patients: int) -> list[object]:
    if fit is None:
        return [float("nan"), "–"]
    value, low, high = fit.at(patients)
    return [value, f"{low:.3f} to {high:.3f}"]


def _chart(name: str, known: Sequence[tuple[int, float]], fit: Fit | None, most: int) -> Chart:
    counts = sorted({n for n, _ in known})
    means = [float(np.mean([v for n, v in known if n == count])) for count in counts]
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "measured, mean over seeds": (counts, means)
    }
    if fit is not None:
        x = np.linspace(min(counts), 3 * most, 60).tolist()
        ends = [fit.at(n) for n in x]
        curves["fitted"] = (x, [e[0] for e in ends])
        curves["95 % from"] = (x, [e[1] for e in ends])
        curves["95 % to"] = (x, [e[2] for e in ends])
    return Chart(
        title=f"{name}; measured at {', '.join(f'{s:.0%}' for s in SHARES)} of the patients",
        x_label="training patients", y_label="Dice", y_limits=(0.0, 1.0), curves=curves,
        marks={"measured so far": most},
    )  # fmt: skip
