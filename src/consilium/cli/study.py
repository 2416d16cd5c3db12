"""``consilium study``: compare U-Net, iUNet and its multi-scale losses on one dataset, on one page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import Dataset, open_dataset
from consilium.cases.files import read_json, write_atomically, write_json
from consilium.cli.console import INTERRUPTED, console, print_table, progress_bar, stop_on_interrupt
from consilium.cli.evaluate import draw_case
from consilium.cli.train import read_settings
from consilium.errors import ConfigurationError
from consilium.inference.model import load_model
from consilium.pages.charts import Chart
from consilium.pages.page import Figure, Section, TableBlock, Text, table_csv, write_page
from consilium.training.config import Budget
from consilium.training.evaluation import evaluate_cases
from consilium.training.study import (
    ARMS,
    Arm,
    ArmResult,
    StudyConfig,
    run_place,
    run_study,
    spread_over_seeds,
    summarise_arm,
)


def study(
    dataset: Annotated[Path, typer.Argument(help="Dataset to study.")],
    out: Annotated[Path, typer.Argument(help="Folder of the study; the same one goes on.")],
    minutes: Annotated[float | None, typer.Option(help="Minutes per training.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per training.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings per network, with different seeds.")] = 3,
    structures: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    scale_weights: Annotated[
        str, typer.Option(help="Of the weighted multi-scale arm, finest first.")
    ] = "1,0.5,0.25",
    mode: Annotated[str, typer.Option(help="whole, patch (crops around the structures) or auto.")] = "auto",
    spacing: Annotated[str, typer.Option(help="Grid in mm as z,y,x; the plan's choice by default.")] = "",
) -> int:
    """Train U-Net, iUNet, iUNet + multi-scale and iUNet + weighted multi-scale on one split and budget."""
    opened = open_dataset(dataset)
    base = read_settings(structures=structures, spacing=spacing, mode=mode, scale_weights="")
    if minutes is None and steps is None:
        minutes = 10.0
    weights = read_settings(structures="", spacing="", scale_weights=scale_weights).scale_weights
    arms = tuple(
        replace(arm, changes={**arm.changes, "scale_weights": weights}) if "weighted" in arm.name else arm
        for arm in ARMS
    )
    config = StudyConfig(
        base=base, budget=Budget(minutes=minutes, steps=steps), arms=arms, seeds=tuple(range(seeds))
    )
    _keep_settings(out, config)
    with stop_on_interrupt() as should_stop, progress_bar() as progress:
        results = run_study(opened, out, config, progress=progress, should_stop=should_stop)
    if len(results) < len(config.arms) * len(config.seeds):
        console.print(f"Interrupted after {len(results)} trainings; the same command goes on.", markup=False)
        return INTERRUPTED
    table = result_table(results, config.arms)
    write_atomically(out / "study.csv", table_csv(table).encode())
    write_study_page(out, opened, results, config, table)
    print_table(table.title, table.columns, table.rows)
    console.print(f"Page: {out / 'study.html'}", markup=False)
    return 0


def result_table(results: Sequence[ArmResult], arms: Sequence[Arm]) -> TableBlock:
    """One row per arm: Dice over seeds and patients, time and memory."""
    rows: list[list[object]] = []
    for arm in arms:
        own = [result for result in results if result.arm == arm.name]
        interval, (mean, deviation) = summarise_arm(results, arm.name), spread_over_seeds(results, arm.name)
        rows.append(
            [
                arm.name,
                mean,
                deviation,
                interval.low,
                interval.high,
                interval.count,
                len(own),
                sum(r.steps for r in own) / len(own),
                sum(r.step_s for r in own) / len(own),
                own[0].predicted_bytes / 2**30,
            ]
        )
    return TableBlock(
        title="Validation Dice, whole volumes on the images' own grid",
        columns=[
            "network", "mean Dice", "standard deviation over seeds", "95 % from", "to", "patients", "seeds",
            "steps", "seconds per step", "predicted peak GiB",
        ],
        rows=rows,
        note="Mean over structures, then seeds. The interval resamples cases (bootstrap). Weights are "
        "those of the best validation, so all figures are slightly too good, alike for every network.",
    )  # fmt: skip


def write_study_page(
    out: Path, dataset: Dataset, results: Sequence[ArmResult], config: StudyConfig, table: TableBlock
) -> None:
    """Table, curves of training and validation, Dice per structure, pictures of the first seed's models."""
    blocks = [
        _curves(results, key, f"Mean Dice over structures, {part}")
        for part, key in (
            ("training batches (80 % of the patients)", "training_mean"),
            ("validation (20 %), whole volumes", "validation"),
        )
    ]
    pictures = []
    for arm in config.arms:
        own = next(r for r in results if r.arm == arm.name)
        model = load_model(run_place(out, own.arm, own.seed))
        for masks, _ in evaluate_cases(model, dataset, list(own.dice)[:1]):
            pictures.append(
                Figure(caption=f"{arm.name}, {masks.case_id}: reference dashed.", png=draw_case(masks))
            )
    sections = [
        Section(title="Result", blocks=[table]),
        Section(title="Dice while training", blocks=blocks),
        Section(title="Per structure", blocks=[_structure_table(results, config.arms)]),
        Section(title="Pictures", blocks=pictures or [Text(text="No validation case could be drawn.")]),
    ]
    budget = ", ".join(f"{value:g} {name}" for name, value in config.budget.to_json().items())
    write_page(out / "study.html", "Study", sections, subtitle=f"{budget} per training")


def _curves(results: Sequence[ArmResult], key: str, title: str) -> Chart:
    curves: dict[str, tuple[list[float], list[float | None]]] = {}
    for result in results:
        values = [e[key]["mean"] if key == "validation" else e[key] for e in result.log]
        x = [entry["elapsed_s"] / 60 for entry in result.log]
        curves[f"{result.arm}, seed {result.seed}"] = (x, values)
    return Chart(title=title, x_label="minutes", y_label="Dice", y_limits=(0.0, 1.0), curves=curves)


def _structure_table(results: Sequence[ArmResult], arms: Sequence[Arm]) -> TableBlock:
    structures = list(next(iter(results[0].dice.values()))) if results[0].dice else []
    rows: list[list[object]] = []
    for arm in arms:
        row: list[object] = [arm.name]
        for name in structures:
            found = [
                value
                for result in results
                if result.arm == arm.name
                for case in result.dice.values()
                if (value := case[name]) is not None
            ]
            row.append(sum(found) / len(found) if found else float("nan"))
        rows.append(row)
    return TableBlock(title="Mean Dice over patients and seeds", columns=["network", *structures], rows=rows)


def _keep_settings(out: Path, config: StudyConfig) -> None:
    """Write the study's settings, or refuse to go on with others."""
    record = {
        "base": config.base.to_json(),
        "budget": config.budget.to_json(),
        "arms": [{"name": arm.name, "changes": _plain(arm.changes)} for arm in config.arms],
        "seeds": list(config.seeds),
    }
    path = out / "study.json"
    if path.exists():
        before = read_json(path)
        if {k: v for k, v in before.items() if k != "seeds"} != {
            k: v for k, v in record.items() if k != "seeds"
        }:
            raise ConfigurationError(
                f"{out.name}: holds a study with other settings. Name another folder, or repeat its settings."
            )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _plain(changes: dict[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
