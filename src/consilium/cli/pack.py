"""``consilium pack``: make one model file of a run."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli import cascades
from consilium.cli.console import console
from consilium.errors import ConfigurationError
from consilium.inference.cascade_file import find_cascade
from consilium.training.pack import pack_run


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.")],
    model: Annotated[Path, typer.Argument(help="Model file to write, e.g. head-neck.consilium.")],
    largest_component: Annotated[
        str, typer.Option(help="Structures of which only the largest part is kept, separated by commas.")
    ] = "",
) -> None:
    """Put a run's best weights, plan, structures and card into one file that can be handed on."""
    cascade = find_cascade(run)
    if cascade is not None:
        if largest_component:
            raise ConfigurationError("--largest-component: a cascade keeps one part per candidate anyway.")
        digest = cascades.pack(cascade, model)
        console.print(f"{model}: {model.stat().st_size / 2**20:.1f} MiB, digest {digest}", markup=False)
        return
    names = tuple(name.strip() for name in largest_component.split(",") if name.strip())
    digest = pack_run(run, model, largest_component=names)
    console.print(f"{model}: {model.stat().st_size / 2**20:.1f} MiB, digest {digest}", markup=False)
