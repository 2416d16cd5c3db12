"""``consilium audit``: what of a dataset can be used and what cannot, as a page and as JSON."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.audit.judge import Audit, audit_dataset
from consilium.cases.dataset import open_dataset
from consilium.cases.files import write_json
from consilium.cli.console import console, print_table, progress_bar
from consilium.pages.page import Section, TableBlock, Text, write_page


def audit(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    out: Annotated[Path, typer.Argument(help="Folder for the page and the JSON; made if absent.")],
) -> None:
    """List per case and structure what can be used, what cannot, and what to do about it."""
    opened = open_dataset(dataset)
    with progress_bar() as progress:
        result = audit_dataset(opened, progress)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", audit_to_json(result))
    tables = [_readiness(result), _findings(result), _protocols(result)]
    counts = f"{result.usable_cases} of {result.cases} cases can be used; {len(result.findings)} findings."
    sections = [Section(title="In short", blocks=[Text(text=counts)])]
    sections += [Section(title=table.title, blocks=[table]) for table in tables]
    write_page(out / "audit.html", "Audit", sections, subtitle=dataset.name)
    shown = tables[0]
    print_table(shown.title, shown.columns, shown.rows)
    console.print(counts, markup=False)
    console.print(f"Page: {out / 'audit.html'}", markup=False)


def audit_to_json(result: Audit) -> dict[str, object]:
    """Every figure and finding."""
    return {
        "cases": result.cases,
        "usable_cases": result.usable_cases,
        "readiness": [vars(r) | {"score": r.score} for r in result.readiness],
        "protocols": dict(result.protocols),
        "findings": [vars(f) | {"weight": str(f.weight)} for f in result.findings],
    }


def _readiness(result: Audit) -> TableBlock:
    rows = [(r.structure, r.contoured, r.usable, r.score) for r in result.readiness]
    return TableBlock(title="Readiness", columns=("structure", "contoured", "usable", "score"), rows=rows)


def _findings(result: Audit) -> TableBlock:
    columns = ("weight", "case", "structure", "reader", "code", "what", "what to do")
    rows = [
        (str(f.weight), f.case_id, f.structure, f.reader, f.code, f.message, f.remedy)
        for f in result.findings
    ]
    blocking = frozenset(k for k, row in enumerate(rows) if row[0] == "blocking")
    return TableBlock(title="Findings", columns=columns, rows=rows, flagged=blocking)


def _protocols(result: Audit) -> TableBlock:
    rows = sorted(result.protocols.items(), key=lambda item: -item[1])
    return TableBlock(title="Scanners and protocols", columns=("scanner, kV, spacing", "cases"), rows=rows)
