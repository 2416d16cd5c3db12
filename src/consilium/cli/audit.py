"""``consilium audit``: what of a dataset or an archive can be used and what cannot, as a page and as JSON."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from consilium.audit.archive import audit_archive
from consilium.audit.judge import Audit, audit_dataset
from consilium.cases.dataset import MANIFEST, open_dataset
from consilium.cases.files import write_json
from consilium.cli.console import console, print_table, progress_bar
from consilium.pages.page import Section, TableBlock, Text, write_page


def audit(
    source: Annotated[Path, typer.Argument(help="Dataset, or a folder of DICOM, NIfTI or nnU-Net as it is.")],
    out: Annotated[Path, typer.Argument(help="Folder for the page and the JSON; made if absent.")],
) -> None:
    """List per case and structure what can be used, what cannot, and what to do about it.

    A folder that is no dataset is read as it lies, one series at a time; nothing is imported or changed.
    The page calls cases by number; places.json, for you alone, says in which folder each lies.
    """
    places: dict[str, str] = {}
    left_out: dict[str, int] = {}
    with progress_bar() as progress:
        if (source / MANIFEST).exists():
            result = audit_dataset(open_dataset(source), progress)
        else:
            found = audit_archive(source, progress)
            result, places, left_out = found.audit, found.places, found.left_out
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", audit_to_json(result) | {"left_out": left_out})
    if places:
        write_json(out / "places.json", places, mode=0o600)
    tables = [_readiness(result), _kinds(result), _findings(result), _protocols(result), _left_out(left_out)]
    counts = f"{result.usable_cases} of {result.cases} cases can be used; {len(result.findings)} findings."
    sections = [Section(title="In short", blocks=[Text(text=counts)])]
    sections += [Section(title=table.title, blocks=[table]) for table in tables if table.rows]
    write_page(out / "audit.html", "Audit", sections, subtitle="" if places else source.name)
    for shown in tables[:2]:
        if shown.rows:
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


def _kinds(result: Audit) -> TableBlock:
    counts = Counter((str(f.weight), f.code) for f in result.findings)
    cases = Counter(
        (weight, code) for weight, code, _ in {(str(f.weight), f.code, f.case_id) for f in result.findings}
    )
    rows = [(weight, code, count, cases[weight, code]) for (weight, code), count in sorted(counts.items())]
    return TableBlock(title="Kinds of findings", columns=("weight", "code", "findings", "cases"), rows=rows)


def _left_out(left_out: dict[str, int]) -> TableBlock:
    rows = sorted(left_out.items(), key=lambda item: -item[1])
    return TableBlock(title="Not looked at", columns=("what", "files"), rows=rows)


def _protocols(result: Audit) -> TableBlock:
    rows = sorted(result.protocols.items(), key=lambda item: -item[1])
    return TableBlock(title="Scanners and protocols", columns=("scanner, kV, spacing", "cases"), rows=rows)
