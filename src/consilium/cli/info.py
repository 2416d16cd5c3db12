"""``consilium info``: what a dataset or a run's folder holds, for people or as JSON."""

from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.cases.case import Case
from consilium.cases.dataset import MANIFEST, Dataset, open_dataset
from consilium.cli.console import console, print_table
from consilium.errors import ConfigurationError

RUN_CONFIG = "config.json"


def info(
    folder: Annotated[Path, typer.Argument(help="Folder of a dataset or of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every figure.")] = False,
) -> None:
    """Print every case with its grid and every structure with its state, or what a run has reached."""
    if (folder / MANIFEST).is_file():
        opened = open_dataset(folder)
        if as_json:
            console.print_json(data=describe_dataset(opened))
        else:
            print_dataset(opened)
    elif (folder / RUN_CONFIG).is_file():
        # Loads torch, which a look at a dataset should not wait for.
        from consilium.training.cascade_run import is_cascade_run

        record = describe_cascade_run(folder) if is_cascade_run(folder) else describe_run(folder)
        if as_json:
            console.print_json(data=record)
        else:
            print_run(record)
    else:
        raise ConfigurationError(
            f"{folder.name}: must be a dataset's folder (with {MANIFEST}) or a run's (with {RUN_CONFIG}); "
            "it is neither. Make a dataset with: consilium import SOURCE DATASET"
        )


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Every case, structure and reader with figures, JSON-able."""
    cases = [_describe_case(case) for case in dataset.cases()]
    return {
        "kind": "dataset",
        "cases": cases,
        "patients": len({case["patient_id"] for case in cases}),
        "structures": list(dataset.structures),
    }


def _describe_case(case: Case) -> dict[str, Any]:
    grid = case.image.grid
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "modality": case.image.modality,
        "shape_zyx": list(grid.shape_zyx),
        "spacing_zyx_mm": list(grid.spacing_zyx_mm),
        "origin_lps_mm": list(grid.affine.origin_lps_mm),
        "annotations": [
            {
                "structure": a.structure,
                "reader": a.reader,
                "state": str(a.state),
                "voxels": a.voxels,
                "volume_cm3": a.volume_cm3,
                "derived": a.derived,
            }
            for a in case.annotations
        ],
        "instances": len(case.instances),
        "findings": [{"code": f.code, "message": f.message, "remedy": f.remedy} for f in case.findings],
    }


def print_dataset(dataset: Dataset) -> None:
    """The tables of cases and of structures."""
    record = describe_dataset(dataset)
    print_table(
        f"{len(record['cases'])} cases of {record['patients']} patients",
        ("case", "modality", "shape (z, y, x)", "spacing mm (z, y, x)", "readings", "findings"),
        [
            (
                case["case_id"],
                case["modality"],
                "×".join(map(str, case["shape_zyx"])),
                " × ".join(f"{s:.4g}" for s in case["spacing_zyx_mm"]),
                len(case["annotations"]),
                ", ".join(sorted({f["code"] for f in case["findings"]})),
            )
            for case in record["cases"]
        ],
    )
    print_table(
        "Structures",
        ("case", "structure", "reader", "state", "voxels", "volume cm³"),
        [
            (
                case["case_id"],
                a["structure"],
                a["reader"] + (" (derived)" if a["derived"] else ""),
                a["state"],
                a["voxels"],
                float(a["volume_cm3"]),
            )
            for case in record["cases"]
            for a in case["annotations"]
        ],
    )


def describe_run(folder: Path) -> dict[str, Any]:
    """What was trained and how far it came, JSON-able."""
    from consilium.training.run_folder import open_run

    run = open_run(folder)
    log = run.read_log()
    scored = [entry for entry in log if isinstance(entry.get("validation"), dict)]
    best = max(scored, key=lambda entry: entry["validation"].get("mean") or 0.0, default=None)
    return {
        "kind": "run",
        "network": run.plan.to_json()["network"]["kind"],
        "structures": list(run.plan.structures),
        "spacing_zyx_mm": run.plan.to_json()["preprocessing"]["spacing_zyx_mm"],
        "training_cases": len(run.split.training),
        "validation_cases": len(run.split.validation),
        "steps": max((entry.get("step", 0) for entry in log), default=0),
        "elapsed_s": max((entry.get("elapsed_s", 0.0) for entry in log), default=0.0),
        "best_step": None if best is None else best.get("step"),
        "best_validation": None if best is None else best["validation"],
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }


def describe_cascade_run(folder: Path) -> dict[str, Any]:
    """What a cascade is to find, whether it is ready and why it is as it is, JSON-able."""
    from consilium.inference.cascade_file import CASCADE_FILE
    from consilium.training.cascade_run import open_cascade_run

    run = open_cascade_run(folder)
    return {
        "kind": "cascade-run",
        "structure": run.config.structure,
        "training_cases": len(run.split.training),
        "validation_cases": len(run.split.validation),
        "ready": (folder / CASCADE_FILE).is_file(),
        "reasons": list(run.reasons),
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }


def print_run(record: dict[str, Any]) -> None:
    """The tables of a run, and why a cascade is as it is."""
    facts = [(key.replace("_", " "), _text(record[key])) for key in record if key not in _NOT_FACTS]
    print_table("Run", ("fact", "value"), facts)
    if record["kind"] == "cascade-run":
        for reason in record["reasons"]:
            console.print(reason, markup=False)
        return
    best = record["best_validation"]
    if best is None:
        console.print("No validation yet.")
        return
    rows = [
        (name, _text(dice), (best.get("cases") or {}).get(name, ""))
        for name, dice in (best.get("structures") or {}).items()
    ]
    print_table("Best validation (full-volume Dice)", ("structure", "Dice", "cases"), rows)
    console.print(f"Mean: {_text(best.get('mean'))}", markup=False)


_NOT_FACTS = frozenset({"kind", "best_validation", "reasons", "files"})


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
