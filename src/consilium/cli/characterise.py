"""``consilium characterise``: what features tell of a target, beyond the diameter."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import consilium
from consilium.cases.dataset import open_dataset
from consilium.cases.files import write_json
from consilium.cli.console import console, print_table, progress_bar
from consilium.metrics.intervals import wilson
from consilium.radiomics.characterise import (
    Characterisation,
    CharacterisationSettings,
    Judged,
    characterise,
)
from consilium.radiomics.table import read_table
from consilium.radiomics.targets import Cohort, build_cohort, targets_from_csv, targets_from_ratings
from consilium.types import Array


def characterise_verb(
    features: Annotated[Path, typer.Argument(help="Table of 'consilium features'.", exists=True)],
    target: Annotated[
        Path,
        typer.Argument(help="A dataset whose instances are rated, or a CSV with the target.", exists=True),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the report.")],
    column: Annotated[
        str, typer.Option(help="The rating, or the column of the CSV (0, 1 or empty).")
    ] = "malignancy",
    reader: Annotated[
        str | None, typer.Option(help="Whose contours; default: the mean over the readers.")
    ] = None,
    min_patients: Annotated[
        int, typer.Option(help="Refuse to report on fewer patients of either kind.", min=5)
    ] = 20,
) -> None:
    """Train and judge a small model from features to a target, against the diameter alone.

    Ratings are averaged over the readers: above 3 counts as 1, below as 0, exactly 3 is left out.
    """
    targets = (
        targets_from_ratings(open_dataset(target), column)
        if target.is_dir()
        else targets_from_csv(target, column)
    )
    cohort = build_cohort(read_table(features), targets, reader=reader)
    settings = CharacterisationSettings(min_patients_per_class=min_patients)
    with progress_bar() as progress:
        result = characterise(cohort, settings, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "characterisation.json", _record(result, settings, column))
    _write_predictions(out / "predictions.csv", cohort, result)
    _draw(out / "characterisation.png", cohort, result)
    _say(out, result)


def _record(result: Characterisation, settings: CharacterisationSettings, column: str) -> dict[str, Any]:
    record = asdict(result)
    for name in ("model", "diameter"):
        record[name].pop("probability")
    return {
        "consilium": consilium.__version__,
        "target": column,
        "settings": asdict(settings),
        "verdict": result.verdict,
        **record,
    }


def _write_predictions(path: Path, cohort: Cohort, result: Characterisation) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("case_id", "structure", "instance", "patient_id", "target", "model", "diameter_alone")
        )
        both = zip(result.model.probability, result.diameter.probability, strict=True)
        for i, (model, alone) in enumerate(both):
            row = (*cohort.subjects[i], cohort.patients[i], cohort.target[i])
            writer.writerow((*row, f"{model:.6f}", f"{alone:.6f}"))


def _draw(path: Path, cohort: Cohort, result: Characterisation) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    roc, calibration = figure.subplots(1, 2)
    named = (("features", result.model, "tab:blue"), ("diameter alone", result.diameter, "tab:orange"))
    for name, judged, colour in named:
        _draw_roc(roc, name, judged, colour, cohort.target == 1)
        _draw_calibration(calibration, name, judged, colour)
    for axes, title, x, y in (
        (roc, "ROC, held-out patients", "false positive rate", "true positive rate"),
        (calibration, "Calibration, fifths of the subjects", "predicted probability", "observed share"),
    ):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.legend(loc="lower right" if axes is roc else "upper left", fontsize=8)
    figure.savefig(path, dpi=120)


def _draw_roc(axes: Any, name: str, judged: Judged, colour: str, positive: Array) -> None:
    thresholds = np.unique(judged.probability)[::-1]
    right = [float((judged.probability[positive] >= t).mean()) for t in thresholds]
    wrong = [float((judged.probability[~positive] >= t).mean()) for t in thresholds]
    auc = judged.auc
    label = f"{name}: {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"
    axes.plot([0.0, *wrong], [0.0, *right], color=colour, label=label)


def _draw_calibration(axes: Any, name: str, judged: Judged, colour: str) -> None:
    found = judged.calibration
    ends = [wilson(round(o * n), n) for o, n in zip(found.observed, found.counts, strict=True)]
    reach = [
        [max(o - e.low, 0.0) for o, e in zip(found.observed, ends, strict=True)],
        [max(e.high - o, 0.0) for o, e in zip(found.observed, ends, strict=True)],
    ]
    label = f"{name}: slope {found.slope:.2f}, Brier {found.brier:.3f}"
    axes.errorbar(found.predicted, found.observed, reach, fmt="o-", capsize=3, color=colour, label=label)


def _say(out: Path, result: Characterisation) -> None:
    def words(judged: Judged) -> tuple[str, float, float, float]:
        auc, found = judged.auc, judged.calibration
        return f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})", found.brier, found.slope, found.intercept

    print_table(
        f"{result.subjects} subjects of {result.patients} patients, {result.positives} of them 1",
        ("model", "AUC (95 %)", "Brier", "slope", "intercept"),
        [("features", *words(result.model)), ("diameter alone", *words(result.diameter))],
    )
    difference = result.difference
    console.print(
        f"Difference of AUC: {difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}). "
        f"{result.verdict}",
        highlight=False,
    )
    most = ", ".join(f"{tag} ({count})" for tag, count in list(result.chosen.items())[:5])
    console.print(f"Features used most (folds): {most}", markup=False, highlight=False)
    console.print(f"Report: {out}", highlight=False)
