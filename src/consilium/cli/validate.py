"""``consilium validate``: a dataset against its written format."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import open_dataset
from consilium.cases.validate import Severity, validate_dataset
from consilium.cli.console import console, fail, print_table, progress_bar


def validate(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Read a whole dataset and list every departure from its format; ends with 1 if it breaks a rule."""
    opened = open_dataset(dataset)
    with progress_bar() as progress:
        findings = validate_dataset(opened, progress)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if as_json:
        console.print_json(data=[vars(finding) for finding in findings])
    elif findings:
        rows = [(str(f.severity), f.code, f.where, f.message, f.remedy) for f in findings]
        print_table("Findings", ("severity", "code", "where", "what", "what to do"), rows)
    if errors:
        raise fail(f"{errors} errors and {len(findings) - errors} warnings in {len(opened.case_ids)} cases.")
    if not as_json:
        text = f"{len(opened.case_ids)} cases are as they must be; {len(findings)} warnings."
        console.print(text, markup=False)
