"""``consilium commission``: the report on contour geometry that a physicist signs."""

import json
import platform
import tempfile
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

import consilium
from consilium.cli.commission_checks import (
    MAX_VOLUME_ERROR,
    MIN_DICE,
    SIGNIFICANT_CM3,
    Row,
    check_everything,
    draw_shapes,
)
from consilium.cli.console import console, fail, print_table, progress_bar
from consilium.pages.page import Figure, Section, TableBlock, Text, write_page

PACKAGES = ("numpy", "numba", "pydicom", "scipy", "matplotlib")


def commission(
    out: Annotated[Path, typer.Argument(help="Folder for report.html and report.json; made if absent.")],
) -> None:
    """Check contours against shapes known on paper, and write the report; ends with 1 if a check fails."""
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress, tempfile.TemporaryDirectory() as scratch:
        rows = check_everything(Path(scratch), progress)
    failed = [row for row in rows if not row.passed]
    record: dict[str, Any] = {
        "consilium": consilium.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "limits": {
            "min_dice": MIN_DICE,
            "max_volume_error": MAX_VOLUME_ERROR,
            "significant_cm3": SIGNIFICANT_CM3,
        },
        "passed": not failed,
        "checks": [asdict(row) | {"passed": row.passed} for row in rows],
    }
    text = json.dumps(record, indent=1, sort_keys=True)
    digest = sha256(text.encode()).hexdigest()
    (out / "report.json").write_text(text, encoding="utf-8")
    write_page(
        out / "report.html",
        "Commissioning of contour geometry",
        _sections(rows, record, digest),
        subtitle="PASSED" if not failed else f"FAILED: {len(failed)} of {len(rows)} checks",
    )
    print_table("Worst of each shape", SHAPE_COLUMNS, _by(rows, "shape"))
    if failed:
        raise fail(f"{len(failed)} of {len(rows)} checks failed: see {out / 'report.html'}")
    console.print(f"All {len(rows)} checks passed. Report: {out / 'report.html'}", markup=False)


SHAPE_COLUMNS = (
    "shape",
    "checks",
    "failed",
    "worst volume error (%)",
    "least Dice to the independent reader",
    "least round-trip Dice",
    "fewest points",
)


def _by(rows: list[Row], key: str) -> list[tuple[object, ...]]:
    """One line per value of ``key``: how many checks, how many failed, and the worst figures."""
    lines: list[tuple[object, ...]] = []
    for value in dict.fromkeys(getattr(row, key) for row in rows):
        group = [row for row in rows if getattr(row, key) == value]
        errors = [abs(r.volume_error) for r in group if r.volume_error is not None]
        lines.append(
            (
                value,
                len(group),
                sum(not row.passed for row in group),
                100 * max(errors) if errors else None,
                min(row.dice for row in group),
                min(row.round_trip_dice for row in group),
                min(row.fewest_points for row in group),
            )
        )
    return lines


def _sections(rows: list[Row], record: dict[str, Any], digest: str) -> list[Section]:
    versions = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    failed = [row for row in rows if not row.passed]
    grids = _by(rows, "grid")
    summary = [
        Text(text=f"{len(rows)} checks, {len(failed)} failed.", kind="warning" if failed else "plain"),
        Text(
            text=f"Limits: mask → RTSTRUCT → mask exactly equal (Dice 1); Dice at least {MIN_DICE} against "
            "an independent reader (pydicom and matplotlib, point in polygon at voxel centres); volume "
            f"within {100 * MAX_VOLUME_ERROR:g} % of closed-form area × slice distance where it exceeds "
            f"{SIGNIFICANT_CM3:g} cm³; no contour under 3 points; no coordinate over 16 bytes."
        ),
        Text(
            text=f"consilium {record['consilium']}, Python {record['python']}, {record['platform']}; "
            f"{versions}."
        ),
        Text(text=f"SHA-256 of report.json: {digest}"),
        Text(text="Checked by: ____________________   Date: ____________   Signature: ____________________"),
    ]
    every = [
        (
            row.grid,
            row.shape,
            row.paper_cm3,
            row.voxels_cm3,
            None if row.volume_error is None else 100 * row.volume_error,
            row.dice,
            row.round_trip_dice,
            row.fewest_points,
            "passed" if row.passed else row.fault,
        )
        for row in rows
    ]
    columns = (
        "grid", "shape", "on paper (cm³)", "voxels (cm³)", "error (%)", "Dice to the independent reader",
        "round-trip Dice", "fewest points", "result",
    )  # fmt: skip
    pictures = [Figure(caption=caption, png=png) for caption, png in draw_shapes()]
    return [
        Section(title="Result", blocks=summary),
        Section(
            title="By shape",
            blocks=[
                TableBlock(title="Worst of each shape", columns=SHAPE_COLUMNS, rows=_by(rows, "shape")),
                *pictures,
            ],
        ),
        Section(
            title="By grid",
            blocks=[
                TableBlock(
                    title="Worst of each grid",
                    columns=("grid", *SHAPE_COLUMNS[1:]),
                    rows=grids,
                    note="Three letters say where Z, Y and X run to: S or I, P or A, L or R.",
                )
            ],
        ),
        Section(
            title="Every check",
            blocks=[
                TableBlock(
                    title="Every shape on every grid",
                    columns=columns,
                    rows=every,
                    flagged=frozenset(k for k, row in enumerate(rows) if not row.passed),
                )
            ],
        ),
    ]
