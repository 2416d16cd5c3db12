"""``consilium plan``: say what a training would do, need and take, without training."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import open_dataset
from consilium.cli.console import console, print_table, progress_bar
from consilium.cli.train import read_settings
from consilium.inference.device import available_memory_bytes, choose_device
from consilium.training.loop import steps_per_epoch
from consilium.training.planning import make_plan, measure_step_s
from consilium.training.start import split_labelled


def plan(
    dataset: Annotated[Path, typer.Argument(help="Dataset to plan for.")],
    network: Annotated[str, typer.Option(help="iunet (invertible, lean in memory) or unet3d.")] = "iunet",
    structures: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    spacing: Annotated[str, typer.Option(help="Grid in mm as z,y,x; the plan's choice by default.")] = "",
    mode: Annotated[str, typer.Option(help="whole, patch or auto.")] = "auto",
    memory_gib: Annotated[
        float | None, typer.Option(help="Plan for so much memory instead of what is free now.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure a step on data of the typical size.")] = True,
) -> None:
    """Print the plan that [bold]consilium train[/bold] would follow, and why."""
    opened = open_dataset(dataset)
    config = read_settings(
        network=network, structures=structures, spacing=spacing, mode=mode, scale_weights=""
    )
    device = choose_device()
    memory = available_memory_bytes(device) if memory_gib is None else int(memory_gib * 2**30)
    with progress_bar() as progress:
        made = make_plan(opened, config, memory_bytes=memory, device=device, progress=progress)
    split = split_labelled(opened, config)
    rows: list[tuple[str, str]] = [
        ("structures", ", ".join(made.structures)),
        ("patients", f"{len(split.training)} cases train, {len(split.validation)} validate"),
        ("network", f"{made.network.kind}, channels {made.network.channels}"),
        ("grid (z, y, x)", " × ".join(f"{s:g}" for s in made.preprocessing.spacing_zyx_mm) + " mm"),
        ("typical volume", " × ".join(map(str, made.typical_zyx)) + " voxels"),
        ("largest volume", " × ".join(map(str, made.largest_zyx)) + " voxels"),
        ("a step sees", _seen(made.patch_zyx, made.batch)),
        ("predicted peak memory", f"{made.predicted_bytes / 2**30:.2f} GiB of {memory / 2**30:.2f} GiB"),
    ]
    if measure:
        seconds = measure_step_s(made, config, device)
        per_epoch = steps_per_epoch(len(split.training), made.batch)
        rows.append(("time per step, measured", f"{seconds:.2f} s on {device.type}"))
        rows.append(("time per epoch", f"{seconds * per_epoch:.0f} s ({per_epoch} steps), validation apart"))
    print_table("Plan", ["what", "value"], rows)
    for reason in made.reasons:
        console.print(f"- {reason}", markup=False, highlight=False)


def _seen(patch: tuple[int, int, int] | None, batch: int) -> str:
    return "one whole volume" if patch is None else f"{batch} patches of {' × '.join(map(str, patch))} voxels"
