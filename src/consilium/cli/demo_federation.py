"""The demo's federation: three phantom hospitals with scanners and habits of their own; public commands."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from consilium.cli.console import console
from consilium.cli.demo import call
from consilium.errors import FederationError
from consilium.federation.federation_file import read_federation_file
from consilium.federation.invitation import FEDERATION, SITE
from consilium.phantoms.dicom import SeriesIdentity, write_patient, write_series
from consilium.phantoms.pelvis import HOSPITALS, Hospital, build_cohort

PATIENTS = 9
HOLD_OUT = 0.34
"""Three of nine patients judge and never train."""

COHORT_SEED, UNSEEN_SEED = 1, 99
PORT = 8702
"""Simulated, nothing listens there."""

FILE = """\
name = "pelvis"
rounds = 8
quorum = 2
deadline_s = 300
give_up_s = 900
presence_s = 10
keep_updates = true

[training]
steps_per_round = 16
validate_every = 4
personal_steps = 20
memory_gib = 4

[training.config]
network = "iunet"
channels = [16, 32, 64]
spacing_zyx_mm = [6.0, 6.0, 6.0]

[coordinator]
host = "localhost"
port = {port}
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
    _write_federation(
        federation, [hospital.name for hospital in hospitals], find_free_port() if flare else PORT
    )
    sketches = [federation / "sketches" / f"{hospital.name}.json" for hospital in hospitals]
    for hospital, sketch in zip(hospitals, sketches, strict=True):
        call("federation", "sketch", out / hospital.name, sketch, "--site", hospital.name)
    call("federation", "plan", federation, *sketches)
    names = [hospital.name for hospital in hospitals]
    if flare:
        sites = _take_part_over_flare(out, names)
    else:
        sites = [_write_site(out / "sites" / name, name) for name in names]
        call("federation", "simulate", federation, *sites)
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


def _take_part_over_flare(out: Path, names: list[str]) -> list[Path]:
    """Certificates, then the coordinator and every hospital as a process; returns the hospitals' folders."""
    from consilium.federation.engine import kit

    federation, sites = out / "federation", [out / "sites" / name for name in names]
    call("federation", "init", federation)
    settings, _ = read_federation_file(federation / FEDERATION)
    fingerprint = kit.compute_fingerprint(federation / "authority" / "ca" / "rootCA.pem")
    commands: list[tuple[object, ...]] = [("serve", federation)]
    for name, site in zip(names, sites, strict=True):
        post = federation / "post"
        post.mkdir(exist_ok=True)
        call("federation", "invite", federation, name, post / f"{name}.zip")
        call("federation", "enrol", post / f"{name}.zip", site)
        request = shutil.copy(site / "request" / f"{name}.request.zip", post)
        call("federation", "approve", federation, request)
        text = (site / SITE).read_text(encoding="utf-8")
        text = text.replace('dataset = "dataset"', f'dataset = "../../{name}"')
        (site / SITE).write_text(text.replace("hold_out = 0.2", f"hold_out = {HOLD_OUT}"), encoding="utf-8")
        signed = post / f"{name}.signed.zip"
        words = ("--signed", signed, "--fingerprint", fingerprint, "--accept", settings.digest[:16])
        commands.append(("join", site, *words))
    _run_side_by_side([[sys.executable, "-m", "consilium", "federation", *map(str, c)] for c in commands])
    return sites


def _run_side_by_side(commands: list[list[str]]) -> None:
    """Run processes until all have ended well; when one fails, the others are ended.

    Raises:
        FederationError: One of them failed; what it said stands above.
    """
    for command in commands:
        console.print(f"$ consilium {' '.join(command[3:])} &", style="bold", markup=False, soft_wrap=True)
    processes = [subprocess.Popen(command) for command in commands]
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    if any(process.wait() for process in processes):
        raise FederationError("demo: the coordinator or a hospital ended with an error; see above.")


def find_free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_federation(folder: Path, sites: list[str], port: int) -> None:
    folder.mkdir(parents=True)
    entries = "".join(f'\n[[sites]]\nname = "{name}"\ncases = {PATIENTS}\n' for name in sites)
    (folder / FEDERATION).write_text(FILE.format(port=port) + entries, encoding="utf-8")


def _write_site(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / SITE).write_text(SITE_FILE.format(name=name, hold_out=HOLD_OUT), encoding="utf-8")
    return folder
