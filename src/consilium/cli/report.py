"""``consilium report``: a run as one HTML file to keep or to print: data, model, results, limits."""

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.cases.files import read_json
from consilium.cli.console import console
from consilium.pages.page import Figure, Section, TableBlock, Text, write_page
from consilium.review.run_page import Blocks, environment_table, plan_blocks, run_sections
from consilium.training.run_folder import CONFIG, SPLIT, open_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PDF_TIMEOUT_S = 120.0
WORST = 10
SHOWN = (
    ("dice", "Dice"),
    ("surface_dice", "surface Dice"),
    ("hd95_mm", "HD95 (mm)"),
    ("mean_surface_distance_mm", "mean surface distance (mm)"),
    ("added_path_length_mm", "added path length (mm)"),
)
LIMITS = (
    "The contours are proposals. A person who is qualified to contour looks at every one before it is used.",
    "The figures hold for images like those of the data card: other scanners, protocols, anatomy after "
    "surgery, implants and other contouring habits may give worse contours. Commission the model on images "
    "of your own before use.",
    "A structure without a figure below was not measured; nothing is known about it.",
    "This is research software and no medical device.",
)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Argument(help="HTML file; by default report.html in the run.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Output folder of evaluate; by default evaluation beside the run.")
    ] = None,
    pdf: Annotated[bool, typer.Option(help="Also write a PDF, where Chromium is installed.")] = True,
) -> None:
    """Write a run's report: one self-contained HTML file, and a PDF where Chromium is installed."""
    opened = open_run(run)
    out = out or run / "report.html"
    found = find_evaluation(run, evaluation)
    sections = report_sections(run, found, fingerprint=opened.fingerprint)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, f"Report: {run.name}", sections, subtitle=f"run {opened.fingerprint[:12]}")
    console.print(f"Report: {out}", markup=False, soft_wrap=True)
    if pdf:
        written = write_pdf(out, out.with_suffix(".pdf"))
        said = f"PDF: {out.with_suffix('.pdf')}" if written else "No PDF: Chromium is not here or failed."
        console.print(said, markup=False, soft_wrap=True)


def find_evaluation(run: Path, named: Path | None) -> Path | None:
    """The folder with ``evaluation.json``: the one named, or one in or beside the run; None without any."""
    places = [named] if named is not None else [run / "evaluation", run.parent / "evaluation"]
    return next((place for place in places if (place / "evaluation.json").is_file()), None)


def report_sections(run: Path, evaluation: Path | None, *, fingerprint: str) -> list[Section]:
    """Every section of the report, in the order in which people ask."""
    record = read_json(run / CONFIG)
    results = [Section(title="Results", blocks=_no_results(run))]
    if evaluation is not None:
        results = _result_sections(evaluation)
    watched = {section.title: section for section in run_sections(run)}
    return [
        Section(title="Limits of use", blocks=[Text(text=text, kind="warning") for text in LIMITS]),
        *results,
        Section(title="Data card", blocks=_data_card(run, record)),
        Section(title="Model card", blocks=_model_card(record, evaluation, fingerprint)),
        watched["Curves"],
        watched["Split"],
        Section(title="Made with", blocks=[environment_table(record)]),
    ]


def _no_results(run: Path) -> Blocks:
    text = (
        "There are no results yet. Make them with: consilium evaluate "
        f"{run.name} DATASET evaluation, then write this report again with --evaluation evaluation."
    )
    return [Text(text=text, kind="warning")]


def _result_sections(evaluation: Path) -> list[Section]:
    record = read_json(evaluation / "evaluation.json")
    cases: Sequence[Mapping[str, Any]] = record["cases"]
    measured = [row for row in cases if isinstance(row.get("dice"), int | float)]
    worst = sorted(measured, key=lambda row: row["dice"])[:WORST]
    worst_table = TableBlock(
        title=f"The {len(worst)} worst contours by Dice",
        columns=["case", "structure", *(title for _, title in SHOWN)],
        rows=[(row["case_id"], row["structure"], *(row.get(field) for field, _ in SHOWN)) for row in worst],
    )
    pictures: Blocks = [*_pictures(evaluation, [row["case_id"] for row in worst])]
    missing = Text(text="The evaluation's page has no picture of these cases.", kind="note")
    return [
        Section(
            title="Results",
            blocks=[_summary(record), Text(text=str(record.get("definitions", "")), kind="note")],
        ),
        Section(title="Worst cases", blocks=[worst_table, *(pictures or [missing])]),
    ]


def _summary(record: Mapping[str, Any]) -> TableBlock:
    columns = ["structure", "cases"]
    for _, title in SHOWN:
        columns += [title, "95 % interval"]
    columns += ["nothing predicted", "predicted though absent"]
    rows = []
    for name, summary in record["structures"].items():
        row: list[object] = [name, summary["cases"]]
        for field, _ in SHOWN:
            figure = summary["figures"].get(field, {})
            low, high = figure.get("low"), figure.get("high")
            row += [
                figure.get("estimate"),
                "–" if low is None or high is None else f"{low:.3g} to {high:.3g}",
            ]
        rows.append([*row, summary["empty_prediction"], summary["empty_reference"]])
    return TableBlock(title="Means over patients", columns=columns, rows=rows)


def _pictures(evaluation: Path, wanted: Sequence[str]) -> list[Figure]:
    """The pictures of the wanted cases, taken from the evaluation's page."""
    page = evaluation / "evaluation.html"
    if not page.exists():
        return []
    found = re.findall(
        r'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)" alt="([\w-]+): ', page.read_text("utf-8")
    )
    by_case = {case_id: base64.b64decode(content) for content, case_id in found}
    return [
        Figure(caption=f"{case_id}: reference dashed, prediction drawn through.", png=by_case[case_id])
        for case_id in dict.fromkeys(wanted)
        if case_id in by_case
    ]


def _data_card(run: Path, record: Mapping[str, Any]) -> Blocks:
    split = read_json(run / SPLIT)["splits"][0]
    plan = record["plan"]
    preprocessing = plan.get("preprocessing", {})
    rows: list[tuple[str, object]] = [
        ("cases that trained", len(split["training"])),
        ("cases that validated", len(split["validation"])),
        ("structures", ", ".join(plan["structures"])),
        ("reader of the reference", record["config"].get("reader") or "each case's first who is not derived"),
        ("intensities", str(preprocessing.get("intensity", "–"))),
        ("grid of the network, z y x (mm)", _numbers(preprocessing.get("spacing_zyx_mm"))),
        ("typical size on that grid, z y x", _numbers(plan.get("typical_zyx"))),
        ("largest size on that grid, z y x", _numbers(plan.get("largest_zyx"))),
    ]
    note = "Patients are pseudonyms; where the images come from is known to whoever imported them."
    return [TableBlock(title="What it learnt from", columns=["what", "value"], rows=rows, note=note)]


def _model_card(record: Mapping[str, Any], evaluation: Path | None, fingerprint: str) -> Blocks:
    digest = read_json(evaluation / "evaluation.json").get("model", "–") if evaluation else "not evaluated"
    rows: list[tuple[str, object]] = [
        ("kind of network", str(record["plan"]["network"].get("kind"))),
        ("digest of the evaluated model", str(digest)),
        ("digest of the run (data split, plan, settings)", fingerprint),
        ("seed", str(record["config"].get("seed"))),
        ("license and use", "as the hospital that trained it decides"),
    ]
    return [TableBlock(title="What it is", columns=["what", "value"], rows=rows), *plan_blocks(record)]


def _numbers(values: Sequence[float] | None) -> str:
    return " × ".join(f"{value:g}" for value in values) if values else "–"


def write_pdf(page: Path, target: Path) -> bool:
    """Print a page with headless Chromium; False where there is none or it fails."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        return False
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"),
            *("--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"),
            *(f"--print-to-pdf={target.resolve()}", page.resolve().as_uri()),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PDF_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError):
            return False
    return target.exists()
