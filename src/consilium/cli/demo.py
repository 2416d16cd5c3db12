"""``consilium demo``: the whole way, by public commands, on phantom hospitals or a folder of real images."""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.console import console, run_verb
from consilium.errors import ConfigurationError

PATIENTS_PER_HOSPITAL = 6
PHANTOM_MINUTES = 2.0
REAL_MINUTES = 20.0
UNSEEN_SEED = 99


def demo(
    data: Annotated[Path | None, typer.Option(help="Folder of real images with contours.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; an earlier demo in it is replaced.")] = Path(
        "demo-output"
    ),
    minutes: Annotated[float | None, typer.Option(help="Training time.")] = None,
) -> None:
    """From DICOM to contours in under five minutes: import, look, train, evaluate, contour, on this machine.

    Without --data it first makes phantom pelvis patients of three hospitals, whose anatomy is known on paper.
    """
    started = time.monotonic()
    _make_room(out)
    budget = minutes or (REAL_MINUTES if data else PHANTOM_MINUTES)
    console.print(f"This takes about {budget + 2:.0f} minutes, of which training takes {budget:g}.\n")
    source = data or _write_phantoms(out / "hospitals")
    dataset, run, model = out / "dataset", out / "run", out / "pelvis.consilium"
    _call("import", source, dataset)
    _call("info", dataset)
    _call("train", dataset, run, "--network", "iunet", "--minutes", f"{budget:g}")
    _call("evaluate", run, dataset, out / "evaluation")
    _call("pack", run, model)
    unseen = _unseen_image(data, dataset, run) if data else _write_unseen(out / "unseen")
    _call("contour", model, unseen, out / "contoured")
    _say_where(out, model, time.monotonic() - started)


def _make_room(out: Path) -> None:
    marker = out / ".consilium-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigurationError(
            f"--out: must be a new folder or an earlier demo; {out.name} holds other files."
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()


def _write_phantoms(folder: Path) -> Path:
    from consilium.phantoms.dicom import SeriesIdentity, write_patient
    from consilium.phantoms.pelvis import HOSPITALS, build_cohort

    console.print("Making phantom patients of three hospitals (CT series and RTSTRUCT) …")
    for hospital in HOSPITALS[:3]:
        for patient in build_cohort(hospital, PATIENTS_PER_HOSPITAL, seed=1):
            identity = SeriesIdentity(
                label=patient.label,
                manufacturer=hospital.manufacturer,
                model_name=hospital.model_name,
                kvp=hospital.kvp,
            )
            write_patient(folder / hospital.name / patient.label, patient.image, patient.contours, identity)
        contoured = ", ".join(hospital.structures)
        console.print(
            f"  {hospital.name}: {PATIENTS_PER_HOSPITAL} patients, contours {contoured}", markup=False
        )
    return folder


def _write_unseen(folder: Path) -> Path:
    """The CT alone of a patient of the fourth hospital, which took no part in the training."""
    from consilium.phantoms.dicom import SeriesIdentity, write_series
    from consilium.phantoms.pelvis import HOSPITALS, build_cohort

    hospital = HOSPITALS[3]
    patient = build_cohort(hospital, 1, seed=UNSEEN_SEED)[0]
    identity = SeriesIdentity(label=f"unseen-{patient.label}", manufacturer=hospital.manufacturer)
    write_series(folder, patient.image, identity)
    return folder


def _unseen_image(data: Path, dataset: Path, run: Path) -> Path:
    """The image of a patient that did not take part in the training."""
    from consilium.cases.dataset import open_dataset
    from consilium.training.run_folder import open_run

    opened = open_dataset(dataset)
    case = opened.case(open_run(run).split.validation[0])
    return opened.case_folder(case.case_id) / case.image.file


def _call(verb: str, *arguments: object) -> None:
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


def _say_where(out: Path, model: Path, seconds: float) -> None:
    console.rule(style="dim")
    console.print(f"Done in {seconds / 60:.1f} minutes. What was made:", highlight=False)
    places = [
        ("Dice while it trained", out / "run" / "curves.png"),
        ("results with pictures", out / "evaluation" / "evaluation.html"),
        ("the model, one file", model),
        ("contours of the unseen CT", out / "contoured"),
    ]
    for what, path in places:
        console.print(f"  {what:28} {path}", markup=False, highlight=False, soft_wrap=True)
    for path in sorted((out / "contoured").rglob("*")):
        if path.is_file():
            console.print(f"  {'':28} {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Look at contours and decide: consilium review {out}", markup=False, soft_wrap=True)
