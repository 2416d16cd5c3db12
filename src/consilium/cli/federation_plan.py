"""``consilium federation sketch`` and ``plan``: one plan for everybody; no case leaves its hospital."""

import json
from pathlib import Path
from typing import Annotated

import typer

from consilium.cases.dataset import open_dataset
from consilium.cli.console import console, print_table, progress_bar
from consilium.errors import ConfigurationError
from consilium.federation.durable import write_durably
from consilium.federation.federation_file import read_federation_file, write_federation_file
from consilium.federation.invitation import FEDERATION
from consilium.federation.plan_sketch import MINIMUM_CASES, Sketch, decode_sketch
from consilium.federation.settings import NAME


def sketch(
    dataset: Annotated[Path, typer.Argument(help="This hospital's dataset.")],
    out: Annotated[Path, typer.Argument(help="File to write and send to the coordinator.")],
    site: Annotated[str, typer.Option(help="This hospital's name in the federation.")],
    reader: Annotated[str, typer.Option(help="Whose contours; each case's first reader by default.")] = "",
) -> None:
    """[bold]Hospital, before the first round:[/bold] sketch the dataset, so that all can derive one plan.

    Counts and histograms of voxel sizes, extents, volumes and intensities, none of fewer than five cases;
    nothing of a single case. Structures that fewer know are left out and listed. Read the file before you
    send it: it is JSON.
    """
    from consilium.hospital.sketching import count_structures, sketch_dataset

    if not NAME.fullmatch(site):
        raise ConfigurationError(f"--site: a name is letters, digits, - and _; got {site[:80]!r}.")
    with progress_bar() as progress:
        opened = open_dataset(dataset)
        made = sketch_dataset(opened, reader=reader or None, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = {"site": site, "sketch": json.loads(made.encode())}
    write_durably(out, json.dumps(table, sort_keys=True).encode())
    print_table(f"{site}: {made.cases} cases", ["structure", "known in"], list(made.structures.items()))
    known = count_structures(opened.cases(), reader or None)
    left_out = [(name, n, _why_left_out(n)) for name, n in known.items() if name not in made.structures]
    if left_out:
        print_table("Left out, and unknown to the federation", ["structure", "known in", "why"], left_out)
    console.print(f"Written: {out}. Read it, and send it to the coordinator.", markup=False)


def _why_left_out(cases: int) -> str:
    if cases < MINIMUM_CASES:
        return f"fewer than {MINIMUM_CASES} cases know it"
    return "a name is letters, digits, space, +, - and _: rename it with consilium names"


def plan(
    folder: Annotated[Path, typer.Argument(help="The federation's folder on this machine.")],
    sketches: Annotated[list[Path], typer.Argument(help="The hospitals' sketches.", exists=True)],
) -> None:
    """[bold]Coordinator:[/bold] derive the plan from the hospitals' sketches, into federation.toml.

    Sites, their counts, structures, network and grid follow; rounds and rules stay as you wrote them. Every
    hospital derives the plan again for itself before it trains.
    """
    from consilium.hospital.sketching import plan_federation, save_sketches

    found = dict(_read_sketch(path) for path in sketches)
    if len(found) != len(sketches):
        raise ConfigurationError("plan: each sketch must be of another site; one is there twice.")
    settings, coordinator = read_federation_file(folder / FEDERATION)
    planned = plan_federation(settings, found)
    save_sketches(folder, found)
    write_federation_file(folder / FEDERATION, planned, coordinator)
    for reason in planned.training["plan"]["reasons"]:
        console.print(reason, markup=False, highlight=False)
    rows = [(site.name, site.cases, ", ".join(site.structures)) for site in planned.sites]
    print_table(f"{planned.name}: {planned.rounds} rounds", ["site", "cases", "structures"], rows)
    console.print(f"Written: {folder / FEDERATION}. Its digest is {planned.digest[:16]}.", markup=False)


def _read_sketch(path: Path) -> tuple[str, Sketch]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return str(table["site"]), decode_sketch(json.dumps(table["sketch"]).encode())
    except (ValueError, KeyError, TypeError) as fault:
        raise ConfigurationError(
            f"{path.name}: must be what consilium federation sketch wrote; it is not."
        ) from fault
