"""``consilium report``: a run as one HTML file to keep or to print: data, model, results, limits."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.cases.files import read_json
from consilium.cli.console import console
from consilium.cli.report_results import EVALUATION, result_sections
from consilium.errors import ConfigurationError
from consilium.pages.page import Section, TableBlock, Text, write_page
from consilium.review.run_page import Blocks, environment_table, plan_blocks, run_sections
from consilium.training.cascade_run import is_cascade_run
from consilium.training.run_folder import CONFIG, SPLIT, open_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PDF_TIMEOUT_S = 120.0
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
        list[Path] | None,
        typer.Option(
            help="Output of evaluate; repeat for several sites. By default evaluation beside the run."
        ),
    ] = None,
    pdf: Annotated[bool, typer.Option(help="Also write a PDF, where Chromium is installed.")] = True,
) -> None:
    """Write a run's report: one self-contained HTML file, and a PDF where Chromium is installed."""
    if is_cascade_run(run):
        raise ConfigurationError(
            f"report: {run.name} is a cascade, whose results evaluate writes as a page of its own: consilium "
            f"evaluate {run.name} DATASET EVALUATION"
        )
    opened = open_run(run)
    out = out or run / "report.html"
    sections = report_sections(run, find_evaluations(run, evaluation or ()), fingerprint=opened.fingerprint)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, f"Report: {run.name}", sections, subtitle=f"run {opened.fingerprint[:12]}")
    console.print(f"Report: {out}", markup=False, soft_wrap=True)
    if pdf:
        written = write_pdf(out, out.with_suffix(".pdf"))
        said = f"PDF: {out.with_suffix('.pdf')}" if written else "No PDF: Chromium is not here or failed."
        console.print(said, markup=False, soft_wrap=True)


def find_evaluations(run: Path, named: Sequence[Path]) -> list[Path]:
    """The folders with ``evaluation.json``: those named, or the one in or beside the run; else none.

    Raises:
        ConfigurationError: One that was named holds no evaluation.
    """
    for place in named:
        if not (place / EVALUATION).is_file():
            raise ConfigurationError(
                f"--evaluation: {place.name} must hold {EVALUATION}; it does not. Make it with: consilium "
                f"evaluate {run.name} DATASET {place.name}"
            )
    places = list(named) or [run / "evaluation", run.parent / "evaluation"]
    found = [place for place in places if (place / EVALUATION).is_file()]
    return found if named else found[:1]


def report_sections(run: Path, evaluations: Sequence[Path], *, fingerprint: str) -> list[Section]:
    """Every section of the report, in the order in which people ask."""
    record = read_json(run / CONFIG)
    watched = {section.title: section for section in run_sections(run)}
    return [
        Section(title="Limits of use", blocks=[Text(text=text, kind="warning") for text in LIMITS]),
        *result_sections(run, evaluations),
        Section(title="Data card", blocks=_data_card(run, record)),
        Section(title="Model card", blocks=_model_card(record, evaluations, fingerprint)),
        watched["Curves"],
        watched["Split"],
        Section(title="Made with", blocks=[environment_table(record)]),
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


def _model_card(record: Mapping[str, Any], evaluations: Sequence[Path], fingerprint: str) -> Blocks:
    digests = {str(read_json(place / EVALUATION).get("model", "–")) for place in evaluations}
    digest = ", ".join(sorted(digests)) or "not evaluated"
    rows: list[tuple[str, object]] = [
        ("kind of network", str(record["plan"]["network"].get("kind"))),
        ("digest of the evaluated model", digest),
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
