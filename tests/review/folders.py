"""Folders of runs, federations and contoured images as consilium writes them, for tests of their pages."""

import json
from pathlib import Path

NAMES = ("Bladder", "Rectum & <b>", *(f"A structure with a very long name, number {k}" for k in range(20)))


def write_run(folder: Path, *, validations: int = 5, minutes: float = 10.0) -> Path:
    """A run whose mean Dice rises from 0.1 by 0.1, one validation a minute."""
    folder.mkdir(parents=True)
    record = {
        "format": "consilium-run",
        "version": 1,
        "config": {"network": "unet3d", "seed": 7, "watch": "lower"},
        "budget": {"minutes": minutes},
        "plan": {"structures": list(NAMES), "network": {"kind": "unet3d"}, "reasons": ["Whole volumes fit."]},
        "environment": {"consilium": "0.1.0", "torch": "2.13.0", "commit": None},
    }
    (folder / "config.json").write_text(json.dumps(record))
    split = {"training": ["case-b", "case-c"], "validation": ["case-a"]}
    (folder / "split.json").write_text(json.dumps({"seed": 7, "splits": [split]}))
    lines = []
    for k in range(1, validations + 1):
        structures = {name: min(1.0, k / 10 + i / 50) for i, name in enumerate(NAMES)} | {"Bladder": None}
        entry = {
            "step": 10 * k,
            "epoch": k / 2,
            "elapsed_s": 60.0 * k,
            "loss": 1 / k,
            "training_mean": k / 10 + 0.05,
            "validation": {"mean": k / 10, "structures": structures, "cases": {}},
            "best": k < validations,
            "overfitting": k == validations,
        }
        lines.append(json.dumps(entry))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n" + '{"step": 60, "epo')
    return folder


def event(kind: str, round_number: int, **more: object) -> dict[str, object]:
    """One line of a federation's log."""
    empty = {"site": "", "detail": "", "accepted": 0, "seconds_left": -1.0, "metrics": {}}
    return {"kind": kind, "round_number": round_number, "rounds": 4, **empty, **more}


def write_federation(folder: Path) -> Path:
    """Three sites; round 1 with two is committed, round 2 waits for ``north`` and has refused ``south``."""
    folder.mkdir(parents=True)
    sites = "".join(f'[[sites]]\nname = "{name}"\n' for name in ("east", "north", "south"))
    (folder / "federation.toml").write_text(f'name = "pelvis"\nrounds = 4\n{sites}')
    events = [
        event("opened", 0),
        event("accepted", 0, site="east", accepted=1, metrics={"dice": 0.2}),
        event("opened", 0),
        event("accepted", 0, site="east", accepted=1, metrics={"dice": 0.25}),
        event("accepted", 0, site="north", accepted=2, metrics={"dice": 0.35}),
        event("closed", 0, accepted=2, detail="absent: south"),
        event("committed", 0, accepted=2, metrics={"dice": 0.3}, seconds_left=600.0),
        event("opened", 1),
        event("accepted", 1, site="east", accepted=1, metrics={"dice": 0.4}),
        event("refused", 1, site="south", detail="an update must be <finite>"),
    ]
    (folder / "progress.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    status = event("waiting", 1, detail="north", accepted=1, seconds_left=120.0)
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def write_contoured(folder: Path) -> Path:
    """Two structures, of which one was not found."""
    folder.mkdir(parents=True)
    structures = [
        {"structure": "Bladder", "voxels": 900, "volume_cm3": 120.5, "doubt": 0.1},
        {"structure": "Rectum", "voxels": 0, "volume_cm3": 0.0, "doubt": None},
    ]
    (folder / "contours.json").write_text(json.dumps({"models": ["abc123"], "structures": structures}))
    return folder
