"""``consilium demo``: the whole way, by public commands, on phantom hospitals or a folder of real images."""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.console import console, run_verb
from consilium.errors import ConfigurationError

REAL_MINUTES = 20.0
PHANTOM_MINUTES = 5
PLACE = 28
"""Width of what is said about a place."""


def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of real images with contours.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; an earlier demo in it is replaced.")] = Path(
        "demo-output"
    ),
    minutes: Annotated[float, typer.Option(help="With --data: training time.")] = REAL_MINUTES,
    flare: Annotated[
        bool,
        typer.Option("--flare", help="The hospitals as processes of their own over NVIDIA FLARE and mTLS."),
    ] = False,
) -> None:
    """From DICOM to contours in under five minutes, on this machine.

    Three phantom hospitals, whose anatomy is known on paper, learn together while their records stay apart;
    the common model is compared with each hospital's own and with one of all records in one place, and
    contours a CT of a fourth hospital. With --data: import, look, train, evaluate, contour your own images.
    """
    from consilium.cli.demo_federation import run_phantom_hospitals

    if data is not None and flare:
        raise ConfigurationError("demo: --flare is for the phantom hospitals; leave --data away.")
    started = time.monotonic()
    make_room(out)
    if data is None:
        console.print(f"This takes about {PHANTOM_MINUTES} minutes.\n")
        places = run_phantom_hospitals(out, flare=flare)
    else:
        console.print(f"This takes about {minutes + 2:.0f} minutes, of which training takes {minutes:g}.\n")
        places = _run_own_images(data, out, minutes)
    _say_where(out, places, time.monotonic() - started)


def _run_own_images(data: Path, out: Path, minutes: float) -> list[tuple[str, Path]]:
    dataset, run, model = out / "dataset", out / "run", out / "model.consilium"
    call("import", data, dataset)
    call("info", dataset)
    call("train", dataset, run, "--network", "iunet", "--minutes", f"{minutes:g}")
    call("evaluate", run, dataset, out / "evaluation")
    call("pack", run, model)
    call("contour", model, _unseen_image(dataset, run), out / "contoured")
    return [
        ("Dice while it trained", run / "curves.png"),
        ("results with pictures", out / "evaluation" / "evaluation.html"),
        ("the model, one file", model),
        ("contours of the unseen image", out / "contoured"),
    ]


def make_room(out: Path) -> None:
    """Empty the folder of an earlier demo, or make a new one.

    Raises:
        ConfigurationError: The folder holds something else.
    """
    marker = out / ".consilium-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigurationError(
            f"--out: must be a new folder or an earlier demo; {out.name} holds other files."
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()


def _unseen_image(dataset: Path, run: Path) -> Path:
    """The image of a patient that did not take part in the training."""
    from consilium.cases.dataset import open_dataset
    from consilium.training.run_folder import open_run

    opened = open_dataset(dataset)
    case = opened.case(open_run(run).split.validation[0])
    return opened.case_folder(case.case_id) / case.image.file


def call(verb: str, *arguments: object) -> None:
    """Run a public command as a person would type it; the demo ends where it fails."""
    from consilium.cli.verbs import build_command

    words = [verb, *map(str, arguments)]
    console.rule(style="dim")
    console.print(
        f"$ consilium {' '.join(words)}", style="bold", markup=False, highlight=False, soft_wrap=True
    )
    code = run_verb(build_command(), words)
    if code:
        raise typer.Exit(code)


def _say_where(out: Path, places: list[tuple[str, Path]], seconds: float) -> None:
    console.rule(style="dim")
    console.print(f"Done in {seconds / 60:.1f} minutes. What was made:", highlight=False)
    for what, path in places:
        console.print(f"  {what:{PLACE}} {path}", markup=False, highlight=False, soft_wrap=True)
        for file in sorted(path.rglob("*")) if path.is_dir() else []:
            if file.is_file():
                console.print(f"  {'':{PLACE}} {file}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Look at contours and decide: consilium review {out}", markup=False, soft_wrap=True)
