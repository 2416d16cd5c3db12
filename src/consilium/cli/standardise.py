"""``consilium standardise``: bring a dataset to its accepted names, or take that back."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import open_dataset
from consilium.cases.standardise import standardise as apply_standard
from consilium.cases.standardise import undo_standardise
from consilium.cli.console import console


def standardise(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take back the last time.")] = False,
) -> None:
    """Apply the accepted names of names.toml to every case, keeping the records as they were.

    Version 1 is the only format there is, so that there is nothing else to bring up to date yet.
    """
    opened = open_dataset(dataset)
    result = undo_standardise(opened) if undo else apply_standard(opened)
    what = "taken back" if undo else "brought to the accepted names"
    console.print(f"{len(result.changed)} cases {what}.", markup=False)
    if result.kept:
        shown = ", ".join(result.kept[:10])
        console.print(f"{len(result.kept)} were changed since and are left alone: {shown}", markup=False)
    elif result.changed and not undo:
        console.print("Take it back with: consilium standardise DATASET --undo", markup=False)
