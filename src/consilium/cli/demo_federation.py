"""The demo's federation: three phantom hospitals with scanners and habits of their own; public commands."""

import os
from pathlib import Path

from consilium.cli.console import console
from consilium.cli.demo import call
from consilium.federation.invitation import FEDERATION, SITE
from consilium.phantoms.dicom import SeriesIdentity, write_patient, write_series
from consilium.phantoms.pelvis import HOSPITALS, Hospital, build_cohort

PATIENTS = 9
HOLD_OUT = 0.34
"""Three of nine patients judge and never train."""

COHORT_SEED, UNSEEN_SEED = 1, 99

FILE = """\
name = "pelvis"
rounds = 8
quorum = 2
deadline_s = 300
give_up_s = 900
presence_s = 10
keep_updates = true

[training]
steps_per_round = 8
validate_every = 4
personal_steps = 20
memory_gib = 4

[training.config]
network = "iunet"
channels = [16, 32, 64]
spacing_zyx_mm = [6.0, 6.0, 6.0]
"""

SITE_FILE = """\
name = "{name}"
training = "consilium.hospital.local_update:build"
federation = "../../federation/federation.toml"

[hospital]
dataset = "../../{name}"
hold_out = {hold_out}
"""


def run_phantom_hospitals(out: Path, *, flare: bool) -> list[tuple[str, Path]]:
    """From phantom patients to contours of a CT of a fourth hospital; returns what was made."""
    federation, hospitals = out / "federation", HOSPITALS[:3]
    console.print("Making phantom patients of three hospitals (CT series and RTSTRUCT) …")
    for hospital in hospitals:
        _write_hospital(out / "dicom" / hospital.name, hospital)
        call("import", out / "dicom" / hospital.name, out / hospital.name)
    _write_federation(federation, [hospital.name for hospital in hospitals])
    sketches = [federation / "sketches" / f"{hospital.name}.json" for hospital in hospitals]
    for hospital, sketch in zip(hospitals, sketches, strict=True):
        call("federation", "sketch", out / hospital.name, sketch, "--site", hospital.name)
    call("federation", "plan", federation, *sketches)
    sites = [_write_site(out / "sites" / hospital.name, hospital.name) for hospital in hospitals]
    workers = min(len(sites), max(1, (os.cpu_count() or 1) // 2))
    call("federation", "simulate", federation, *sites, "--workers", workers)
    call("federation", "compare", federation, *sites)
    call("contour", federation / "model.consilium", _write_unseen(out / "unseen"), out / "contoured")
    return [
        ("the comparison", federation / "council.html"),
        *((f"what {path.name} got", path / "outcome" / "outcome.html") for path in sites),
        ("the common model, one file", federation / "model.consilium"),
        ("contours of the unseen CT", out / "contoured"),
    ]


def _write_hospital(folder: Path, hospital: Hospital) -> None:
    for patient in build_cohort(hospital, PATIENTS, seed=COHORT_SEED):
        identity = SeriesIdentity(
            label=patient.label,
            manufacturer=hospital.manufacturer,
            model_name=hospital.model_name,
            kvp=hospital.kvp,
        )
        write_patient(folder / patient.label, patient.image, patient.contours, identity)
    contoured = ", ".join(hospital.structures)
    console.print(f"  {hospital.name}: {PATIENTS} patients, contours {contoured}", markup=False)


def _write_unseen(folder: Path) -> Path:
    """The CT alone of a patient of the fourth hospital, which took no part."""
    hospital = HOSPITALS[3]
    patient = build_cohort(hospital, 1, seed=UNSEEN_SEED)[0]
    identity = SeriesIdentity(label=f"unseen-{patient.label}", manufacturer=hospital.manufacturer)
    write_series(folder, patient.image, identity)
    return folder


def _write_federation(folder: Path, sites: list[str]) -> None:
    folder.mkdir(parents=True)
    entries = "".join(f'\n[[sites]]\nname = "{name}"\ncases = {PATIENTS}\n' for name in sites)
    (folder / FEDERATION).write_text(FILE + entries, encoding="utf-8")


def _write_site(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / SITE).write_text(SITE_FILE.format(name=name, hold_out=HOLD_OUT), encoding="utf-8")
    return folder
