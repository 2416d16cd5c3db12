"""The FLARE transport as real processes over mTLS on loopback; needs nvflare: run with `-m network`."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")

from cryptography import x509

from consilium.federation.engine import kit
from consilium.federation.engine.supervise import REFUSED
from consilium.federation.parameters import compute_digest
from consilium.federation.settings import FederationSettings
from consilium.federation.simulation import simulate
from consilium.federation.tensors import Tensors, encode_tensors
from tests.data import REPOSITORY
from tests.federation.conftest import is_isolated
from tests.federation.machines import Machines, find_free_port
from tests.federation.toys import build_local_update, build_model, build_settings_for

pytestmark = pytest.mark.network

SITES = ("site-0", "site-1", "site-2")
SETTINGS = build_settings_for(3, rounds=4, quorum=2, deadline_s=6.0, give_up_s=90.0, presence_s=5.0)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> None:
    """Real processes: nothing is patched."""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    started = Machines(tmp_path / "f", SETTINGS, build_model())
    yield started
    started.end()


@pytest.fixture
def patient_machines(tmp_path: Path) -> Iterator[Machines]:
    """Every round waits for every site, as long as a busy machine takes to start one again."""
    started = Machines(tmp_path / "f", replace(SETTINGS, quorum=3, give_up_s=300.0), build_model())
    yield started
    started.end()


def digest_of(content: bytes) -> str:
    return compute_digest(Tensors(content))


def simulated(tmp_path: Path, *, settings: FederationSettings = SETTINGS) -> str:
    updates = {site: build_local_update(site) for site in SITES}
    return compute_digest(simulate(settings, build_model(), updates, tmp_path / "simulated"))


def wait_for(what: str, machines: Machines, timeout_s: float = 180.0) -> None:
    until = time.monotonic() + timeout_s
    audit = machines.folder / "coordinator" / "journal" / "audit.jsonl"
    while time.monotonic() < until:
        if audit.exists() and what in audit.read_text():
            return
        machines.revive()
        time.sleep(0.05)
    raise AssertionError(f"{what} never came\n{machines.read_log('coordinator')[-2000:]}")


def test_the_same_file_runs_simulated_and_real_with_the_same_bits(
    patient_machines: Machines, tmp_path: Path
) -> None:
    machines = patient_machines
    machines.start_all()
    machines.wait("coordinator", *SITES, timeout_s=300)
    wanted = simulated(tmp_path, settings=machines.settings)
    assert digest_of(machines.final) == wanted
    for site in SITES:
        own = (machines.folder / site / "memory" / "final.safetensors").read_bytes()
        assert digest_of(own) == wanted


def test_a_site_with_another_sites_name_is_refused(machines: Machines) -> None:
    impostor = machines.folder / "site-1" / "site.toml"
    impostor.write_text(impostor.read_text().replace('"site-1"', '"site-0"'))
    machines.start_all()
    wait_for("it used another site's name", machines)
    machines.wait("coordinator", "site-0", "site-2")
    assert '"absent":["site-1"]' in machines.read_audit()


def test_a_certificate_of_another_authority_is_not_let_in(machines: Machines, tmp_path: Path) -> None:
    other = Machines(tmp_path / "other", SETTINGS, build_model(), own_authority=True)
    for name in ("client.crt", "client.key", "rootCA.pem"):
        shutil.copy(
            other.folder / "site-1" / "kit" / "startup" / name, machines.folder / "site-1" / "kit" / "startup"
        )
    machines.start_all()
    machines.wait("coordinator", "site-0", "site-2")
    assert '"site-1"' not in machines.read_audit().replace('"absent":["site-1"]', "")


def test_a_federation_that_a_site_did_not_approve_is_not_trained_for(machines: Machines) -> None:
    file = machines.folder / "site-1" / "site.toml"
    file.write_text(file.read_text().replace(machines.settings.digest[:16], "0" * 16))
    machines.start_all()
    machines.wait("coordinator", "site-0", "site-2")
    assert machines.processes["site-1"].wait(5) == REFUSED
    assert "approved must be the digest" in machines.read_log("site-1")


def test_nobody_may_submit_a_job_or_bring_code(machines: Machines) -> None:
    machines.start_all()
    for name in ("coordinator", *SITES):
        local = machines.folder / name / "kit" / "local"
        permissions = json.loads((local / "authorization.json").read_text())["permissions"]
        assert {value for role in permissions.values() for value in role.values()} == {"none"}
        resources = json.loads((local / "resources.json").read_text())
        assert (resources["class_allow_list"], resources["class_list_enforcement_mode"]) == ([], "enforce")
        assert "/tmp/nvflare" not in json.dumps(resources)
    machines.wait("coordinator", *SITES)


CANARIES = ("CANARY^JOHN", "1.2.826.0.1.3680043.8.498.1234", "CANARY-ID-0815", "CANARY-STREET")


def test_no_patient_word_travels_or_reaches_the_coordinators_disk(
    patient_machines: Machines, tmp_path: Path
) -> None:
    machines = patient_machines
    tap = str(Path(__file__).parent / "wiretap")
    paths = os.pathsep.join((tap, str(REPOSITORY / "src"), str(REPOSITORY)))
    for site in SITES:
        patients = machines.folder / site / "patients"
        patients.mkdir()
        (patients / f"{CANARIES[0]}.txt").write_text(" ".join(CANARIES))
        (patients / f"unreadable {CANARIES[1]}.txt").write_text(" ".join(CANARIES))
    for name in ("coordinator", *SITES):
        tape = {"CONSILIUM_TEST_TAPE": str(tmp_path / f"{name}.tape"), "PYTHONPATH": paths}
        machines.environments[name] = tape
    machines.start_all()
    for site in SITES:
        # An error of the training that names the patient: it stays in the hospital's own log.
        assert machines.processes[site].wait(120) == REFUSED
        assert CANARIES[2] in machines.read_log(site)
        machines.start(site)
    machines.wait("coordinator", *SITES, timeout_s=240)
    tapes = b"".join((tmp_path / f"{name}.tape").read_bytes() for name in ("coordinator", *SITES))
    assert tapes.count(b"encoder.0.weight") >= 3 * 2 * SETTINGS.rounds, "the tap has not heard the models"
    kept = [path for path in (machines.folder / "coordinator").rglob("*") if path.is_file()]
    assert len(kept) > 10
    disk = b"".join(path.read_bytes() for path in [*kept, machines.folder / "coordinator.log"])
    words = [*CANARIES, *(str(machines.folder / site) for site in SITES)]
    assert not [word for word in words if word.encode() in tapes]
    assert not [word for word in words if word.encode() in disk]


def test_certificates_last_and_are_valid_for_a_slow_clock(machines: Machines) -> None:
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    for name, file, days in (
        ("coordinator", "rootCA.pem", kit.ROOT_DAYS),
        ("coordinator", "server.crt", kit.SITE_DAYS),
        ("site-1", "client.crt", kit.SITE_DAYS),
    ):
        content = (machines.folder / name / "kit" / "startup" / file).read_bytes()
        certificate = x509.load_pem_x509_certificate(content)
        assert certificate.not_valid_before_utc < now - day
        assert certificate.not_valid_after_utc > now + (days - 3) * day


def test_stores_lie_in_the_federations_own_folder_and_many_sites_are_let_in(machines: Machines) -> None:
    kit.configure_coordinator(machines.folder / "coordinator", sites=400)
    text = (machines.folder / "coordinator" / "kit" / "local" / "resources.json").read_text()
    resources = json.loads(text)
    own = str((machines.folder / "coordinator" / "flare").resolve())
    assert resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"].startswith(own)
    manager = next(c for c in resources["components"] if c["id"] == "job_manager")
    assert manager["args"]["uri_root"].startswith(own)
    assert resources["servers"][0]["max_num_clients"] >= 400


def run_verb(*words: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from consilium.cli.federation import app; app()", *map(str, words)]
    paths = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY)))
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
    )


def finish_verb(process: subprocess.Popen[str], timeout_s: float = 240.0) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output[-2000:]
    return output


def test_the_verbs_lead_from_an_empty_folder_to_a_shared_model(tmp_path: Path) -> None:
    at = tmp_path
    finish_verb(run_verb("init", "c", cwd=at))
    text = (at / "c" / "federation.toml").read_text().replace("8702", str(find_free_port()))
    text = text.replace("rounds = 20", "rounds = 2").replace("presence_s = 60", "presence_s = 5")
    (at / "c" / "federation.toml").write_text(text)
    said = finish_verb(run_verb("init", "c", cwd=at)).split()
    digest, fingerprint = (
        next(w for w in said if len(w) == n and set(w) <= set("0123456789abcdef")) for n in (16, 64)
    )
    assert finish_verb(run_verb("init", "c", cwd=at)).split() == said, "it must tell the same again"
    for name in ("hospital-a", "hospital-b"):
        training = "tests.federation.training_at_home:build"
        finish_verb(run_verb("invite", "c", name, f"{name}.zip", cwd=at))
        finish_verb(run_verb("enrol", f"{name}.zip", name, "--training", training, cwd=at))
        request = shutil.copy(at / name / "request" / f"{name}.request.zip", at)
        finish_verb(run_verb("approve", "c", request, cwd=at))
    (at / "model.safetensors").write_bytes(encode_tensors(build_model()))
    verbs = [run_verb("serve", "c", "--model", "model.safetensors", cwd=at)]
    for name in ("hospital-a", "hospital-b"):
        signed = ("--signed", f"{name}.signed.zip", "--fingerprint", fingerprint, "--accept", digest)
        verbs.append(run_verb("join", name, *signed, cwd=at))
    try:
        said_by_all = [finish_verb(verb) for verb in verbs]
    finally:
        for verb in verbs:
            verb.kill()
    assert "round 2 of 2: combined from 2 sites" in said_by_all[0]
    assert "round 1 is trained and sent" in said_by_all[1]
    assert "2 rounds are committed" in finish_verb(run_verb("status", "c", cwd=at))
    assert digest_of((at / "c" / "final.safetensors").read_bytes()) == digest_of(
        (at / "hospital-a" / "memory" / "final.safetensors").read_bytes()
    )
    assert not list((at / "c").rglob("hospital-*.key"))


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs unshare and root")
@pytest.mark.skipif(is_isolated(), reason="this whole run is in a network of loopback alone")
def test_everything_works_in_a_network_of_loopback_alone(tmp_path: Path) -> None:
    name = test_the_same_file_runs_simulated_and_real_with_the_same_bits.__name__
    here = f"{Path(__file__).relative_to(REPOSITORY)}::{name}"
    inner = f"ip link set lo up && {sys.executable} -m pytest -q -m network -p no:cacheprovider {here}"
    result = subprocess.run(
        ["unshare", "-n", "sh", "-c", inner], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-500:]
