"""``consilium pack``: make one model file of a run."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.console import console
from consilium.training.pack import pack_run


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.")],
    model: Annotated[Path, typer.Argument(help="Model file to write, e.g. head-neck.consilium.")],
    largest_component: Annotated[
        str, typer.Option(help="Structures of which only the largest part is kept, separated by commas.")
    ] = "",
) -> None:
    """Put a run's best weights, plan, structures and card into one file that can be handed on."""
    names = tuple(name.strip() for name in largest_component.split(",") if name.strip())
    digest = pack_run(run, model, largest_component=names)
    console.print(f"{model}: {model.stat().st_size / 2**20:.1f} MiB, digest {digest}", markup=False)
