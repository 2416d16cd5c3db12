"""``consilium train``: train a network on a dataset."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.adaptation.calibrate import MOST_PATIENTS, calibrate_run
from consilium.cases.dataset import Dataset, open_dataset
from consilium.cases.files import write_atomically
from consilium.cli import cascades
from consilium.cli.console import INTERRUPTED, console, print_table, progress_bar, stop_on_interrupt
from consilium.errors import ConfigurationError
from consilium.pages.pictures import draw_curves
from consilium.tensorflow.installed import check_installed
from consilium.training.cascade_run import is_cascade_run
from consilium.training.config import Budget, TrainingConfig
from consilium.training.data import load_drawn
from consilium.training.framework import TORCH_RUNS, TrainingFramework
from consilium.training.loop import train as run_training
from consilium.training.run_folder import CONFIG, CURVES, Run, open_run
from consilium.training.start import prepare_run, start_run
from consilium.training.workers import Group, join_workers, leave_workers
from consilium.types import Progress, Triple, no_progress

DEFAULT_EPOCHS = 200
FOLLOWED = {
    1.0: "Validation patients with a known deformation allow to follow the network in full",
    0.5: "By half",
    0.0: "Not at all, since it made contours worse that the registration had carried well",
}


def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset to learn from.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run: new, or with --resume an interrupted one.")],
    network: Annotated[str, typer.Option(help="iunet (invertible, lean in memory) or unet3d.")] = "iunet",
    structures: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    minutes: Annotated[float | None, typer.Option(help="Train for so many minutes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Train for so many epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train for so many steps.")] = None,
    scale_weights: Annotated[
        str, typer.Option(help="Weight of the loss per scale, finest first, e.g. 1,0.5,0.25; or learned:3.")
    ] = "",
    spacing: Annotated[str, typer.Option(help="Grid in mm as z,y,x; the plan's choice by default.")] = "",
    mode: Annotated[str, typer.Option(help="whole, patch or auto.")] = "auto",
    watch: Annotated[str, typer.Option(help="On over-fitting: lower, stop or off.")] = "lower",
    adaptation: Annotated[
        bool, typer.Option("--adaptation", help="Train a network that refines contours: for adapt --model.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Repeats the same training.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    detect: Annotated[
        bool, typer.Option("--detect", help="Find, then contour: a cascade for things such as nodules.")
    ] = False,
    least_readers: Annotated[
        int, typer.Option(help="With --detect: ignore what fewer readers saw (LUNA16 takes 3 of 4).")
    ] = 1,
    framework: Annotated[
        str, typer.Option(help="torch or tensorflow; a run may go on in the other.")
    ] = "torch",
) -> int:
    """Train a network: four fifths of the patients teach it, one fifth validates it.

    Whole volumes where the memory allows, patches otherwise; [bold]consilium plan[/bold] says beforehand.
    Ctrl-C keeps everything; --resume goes on.
    --detect learns to find small things (instances with diameters) in whole scans, and to contour each.

    On several GPUs or machines, each with its own part of every batch:
    [bold]torchrun --nproc-per-node 2 -m consilium train DATASET RUN[/bold]
    """
    frame = _choose_framework(framework)
    opened = open_dataset(dataset)
    if minutes is None and epochs is None and steps is None:
        epochs = DEFAULT_EPOCHS
    budget = Budget(minutes=minutes, epochs=epochs, steps=steps)
    if (detect or is_cascade_run(run)) and (framework != "torch" or frame.workers.count > 1):
        raise ConfigurationError(
            "--detect: torch trains a cascade in one process. Leave out --framework and torchrun."
        )
    if is_cascade_run(run):
        _check_resume(run, resume)
        return cascades.resume(opened, run)
    if detect:
        settings = cascades.settings_of(
            opened,
            structures=_names(structures),
            least_readers=least_readers,
            spacing_zyx_mm=read_spacing(spacing),
            seed=seed,
        )
        return cascades.start(opened, run, settings, budget)
    # The first worker makes what the others then find: the run's folder, and the cache of prepared cases.
    if not frame.workers.leads:
        console.quiet = True
        frame.workers.wait()
        chosen = open_run(run)
    elif resume or (run / CONFIG).exists():
        chosen = _resume(run, resume)
    else:
        config = read_settings(
            network=network,
            structures=structures,
            scale_weights=scale_weights,
            spacing=spacing,
            mode=mode,
            watch=watch,
            adaptation=adaptation,
            seed=seed,
        )
        with progress_bar() as progress:
            chosen = start_run(opened, run, config, budget, progress=progress)
    return _train(frame, opened, chosen)


def _train(frame: TrainingFramework, opened: Dataset, chosen: Run) -> int:
    """Train until the budget is spent or Ctrl-C; returns the exit code."""
    for reason in chosen.plan.reasons:
        console.print(reason, markup=False, highlight=False)
    workers = frame.workers
    strengths: dict[str, float] = {}
    with stop_on_interrupt() as should_stop, _progress_of(workers) as progress:
        parts = prepare_run(opened, chosen, progress=progress)
        if workers.leads:
            workers.wait()
        outcome = run_training(
            chosen,
            parts.training,
            parts.validation,
            progress=progress,
            should_stop=should_stop,
            on_validation=lambda entry: write_curves(chosen),
            framework=frame,
        )
        if outcome.finished and workers.leads and chosen.plan.takes_prior:
            ids = chosen.split.validation[:MOST_PATIENTS]
            patients = load_drawn(opened, ids, chosen.plan.structures, chosen.config.reader)
            strengths = calibrate_run(chosen.folder, patients, len(ids), progress=progress)
    leave_workers()
    if not outcome.finished:
        console.print(
            f"Interrupted at step {outcome.state.step}; everything is kept. "
            f"Go on with: consilium train {opened.folder} {chosen.folder} --resume",
            markup=False,
        )
        return INTERRUPTED
    _print_end(chosen, outcome.best_step)
    for strength, text in FOLLOWED.items():
        names = ", ".join(name for name, value in strengths.items() if value == strength)
        if names:
            console.print(f"{text}: {names}", markup=False)
    return 0


def _choose_framework(name: str) -> TrainingFramework:
    if name == "torch":
        return replace(TORCH_RUNS, workers=join_workers())
    if name != "tensorflow":
        raise ConfigurationError(f"--framework: must be torch or tensorflow; got {name!r}.")
    check_installed("train --framework tensorflow")
    from consilium.tensorflow.runs import build_framework
    from consilium.tensorflow.workers import join_tensorflow_workers

    return build_framework(join_tensorflow_workers())


def _progress_of(workers: Group) -> AbstractContextManager[Progress]:
    """Only the first worker draws."""
    return progress_bar() if workers.leads else nullcontext(no_progress)


def read_settings(*, scale_weights: str, structures: str, spacing: str, **others: Any) -> TrainingConfig:
    """Settings from the command line's words.

    Raises:
        ConfigurationError: A word that cannot be.
    """
    learned = scale_weights.startswith("learned:")
    if learned:
        weights: tuple[float, ...] = (1.0,) * int(
            _numbers(scale_weights.removeprefix("learned:"), "scales")[0]
        )
    else:
        weights = _numbers(scale_weights, "--scale-weights")
    config = TrainingConfig(
        structures=_names(structures),
        scale_weights=weights,
        learned_weights=learned,
        spacing_zyx_mm=read_spacing(spacing),
    )
    return replace(config, **others)


def read_spacing(text: str) -> Triple | None:
    """Three lengths in mm, z, y, x; None for an empty text.

    Raises:
        ConfigurationError: Something else.
    """
    size = _numbers(text, "--spacing")
    if len(size) not in {0, 3}:
        raise ConfigurationError(f"--spacing: must be three lengths in mm, z,y,x; got {text!r}.")
    return (size[0], size[1], size[2]) if size else None


def write_curves(run: Run) -> None:
    """Draw the log: Dice of training and validation, each structure, and where over-fitting was seen."""
    log = run.read_log()
    epochs = [entry["epoch"] for entry in log]
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "training, mean": (epochs, [_number(e["training_mean"]) for e in log]),
        "validation, mean": (epochs, [_number(e["validation"]["mean"]) for e in log]),
    }
    for name in run.plan.structures:
        curves[name] = (epochs, [_number(e["validation"]["structures"].get(name)) for e in log])
    seen = [e["epoch"] for e in log if e["overfitting"]]
    marks = {f"over-fitting{f' {k + 1}' if k else ''}": epoch for k, epoch in enumerate(seen)}
    best = [e["epoch"] for e in log if e["best"]]
    if best:
        marks["best"] = best[-1]
    picture = draw_curves(
        curves,
        title="Dice: training batches, and whole validation volumes",
        x_label="epoch",
        y_label="Dice",
        y_limits=(0.0, 1.0),
        marks=marks,
    )
    write_atomically(run.folder / CURVES, picture)


def _resume(folder: Path, asked: bool) -> Run:
    run = open_run(folder)
    _check_resume(folder, asked)
    return run


def _check_resume(folder: Path, asked: bool) -> None:
    if not asked:
        raise ConfigurationError(
            f"{folder.name}: holds a run already. Go on with --resume, or name another folder."
        )


def _print_end(run: Run, best_step: int) -> None:
    best = [entry for entry in run.read_log() if entry["step"] == best_step]
    if not best:
        return
    scores = best[-1]["validation"]
    rows = [
        (name, _number(scores["structures"][name]), scores["cases"][name]) for name in run.plan.structures
    ]
    rows.append(("mean", _number(scores["mean"]), len(run.split.validation)))
    print_table(
        f"Validation of the kept weights (step {best_step}), whole volumes on the images' own grid",
        ["structure", "Dice", "cases"],
        rows,
    )
    console.print(f"Curves: {run.folder / CURVES}", markup=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(f"{what}: must be numbers separated by commas; got {text!r}.") from error


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
