"""The FLARE transport as real processes over mTLS on loopback; needs nvflare: run with `-m network`."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs nvflare: pip install 'consilium[federation]'")

from consilium.federation.engine.supervise import REFUSED
from consilium.federation.parameters import compute_digest
from consilium.federation.settings import FederationSettings
from consilium.federation.simulation import simulate
from consilium.federation.tensors import Tensors, encode_tensors
from tests.data import REPOSITORY
from tests.federation.machines import Machines, Proxy, find_free_port
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


def digest_of(content: bytes) -> str:
    return compute_digest(Tensors(content))


def simulated(tmp_path: Path, *, settings: FederationSettings = SETTINGS) -> str:
    updates = {site: build_local_update(site) for site in SITES}
    return compute_digest(simulate(settings, build_model(), updates, tmp_path / "simulated"))


def wait_for(what: str, machines: Machines, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    audit = machines.folder / "coordinator" / "journal" / "audit.jsonl"
    while time.monotonic() < until:
        if audit.exists() and what in audit.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} never came\n{machines.read_log('coordinator')[-2000:]}")


def test_the_same_file_runs_simulated_and_real_with_the_same_bits(machines: Machines, tmp_path: Path) -> None:
    machines.start_all()
    machines.wait("coordinator", *SITES)
    assert digest_of(machines.final) == simulated(tmp_path)
    for site in SITES:
        assert digest_of((machines.folder / site / "memory" / "final.safetensors").read_bytes()) == digest_of(
            machines.final
        )


def test_a_killed_site_cannot_block_a_round_and_takes_part_again_when_it_returns(
    machines: Machines,
) -> None:
    machines.seconds = 1.0
    machines.start_all()
    wait_for('"sealed"', machines)
    machines.kill("site-1")
    wait_for('"absent":["site-1"]', machines)
    machines.start("site-1")
    machines.wait("coordinator", "site-0", "site-1", "site-2")
    closed = [json.loads(line) for line in machines.read_audit().splitlines() if '"event":"closed"' in line]
    assert [line["absent"] for line in closed].count([]) >= 2
    assert closed[-1]["absent"] == []


def test_a_killed_coordinator_goes_on_with_the_same_bits(machines: Machines, tmp_path: Path) -> None:
    machines.seconds = 0.3
    machines.start_all()
    rng = np.random.default_rng(int(os.environ.get("CONSILIUM_SEED", "2")))
    for _ in range(3):
        time.sleep(float(rng.uniform(3, 6)))
        if machines.processes["coordinator"].poll() is None:
            machines.kill("coordinator")
            machines.start("coordinator")
    machines.wait("coordinator", *SITES, timeout_s=180)
    closed = [json.loads(line) for line in machines.read_audit().splitlines() if '"event":"closed"' in line]
    if all(line["absent"] == [] for line in closed):
        assert digest_of(machines.final) == simulated(tmp_path)


def test_a_late_site_joins_the_running_federation(machines: Machines) -> None:
    machines.seconds = 1.0
    for name in ("coordinator", "site-0", "site-2"):
        machines.start(name)
    wait_for('"absent":["site-1"]', machines)
    machines.start("site-1")
    wait_for('"site":"site-1"', machines)
    machines.wait("coordinator", *SITES)
    assert '"event":"accepted"' in "".join(
        line for line in machines.read_audit().splitlines() if '"site-1"' in line
    )


def test_a_site_with_another_sites_name_is_refused(machines: Machines) -> None:
    impostor = machines.folder / "site-1" / "site.toml"
    impostor.write_text(impostor.read_text().replace('"site-1"', '"site-0"'))
    machines.start_all()
    wait_for("it used another site's name", machines)
    machines.wait("coordinator", "site-0", "site-2")
    assert '"absent":["site-1"]' in machines.read_audit()


def test_a_certificate_of_another_authority_is_not_let_in(machines: Machines, tmp_path: Path) -> None:
    other = Machines(tmp_path / "other", SETTINGS, build_model())
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


def test_no_patient_word_reaches_the_coordinator(machines: Machines) -> None:
    canaries = ["CANARY^JOHN", "1.2.826.0.1.3680043.8.498.1234", "CANARY-ID-0815"]
    for site in SITES:
        (machines.folder / site / f"{canaries[0]}.txt").write_text(" ".join(canaries))
    machines.start_all()
    machines.wait("coordinator", *SITES)
    seen = [path for path in (machines.folder / "coordinator").rglob("*") if path.is_file()]
    assert len(seen) > 10
    for path in [*seen, machines.folder / "coordinator.log"]:
        content = path.read_bytes()
        assert not [word for word in canaries if word.encode() in content], path.name
        assert str(machines.folder / "site-0").encode() not in content, path.name


def run_verb(*words: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from consilium.cli.federation import app; app()", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
    )


def finish_verb(process: subprocess.Popen[str], timeout_s: float = 90.0) -> str:
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
    for name in ("hospital-a", "hospital-b"):
        training = "tests.federation.training_at_home:build"
        finish_verb(run_verb("invite", "c", name, f"{name}.zip", "--training", training, cwd=at))
        finish_verb(run_verb("enrol", f"{name}.zip", name, cwd=at))
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


def behind_proxy(machines: Machines, **options: int) -> Proxy:
    proxy = Proxy(machines.port, **options)
    machines.go_through("site-1", proxy.port)
    return proxy


def test_an_outage_of_a_sites_line_costs_no_bit_when_it_ends_in_time(tmp_path: Path) -> None:
    settings = replace(SETTINGS, quorum=3)
    machines = Machines(tmp_path / "f", settings, build_model())
    machines.seconds = 0.5
    proxy = behind_proxy(machines)
    try:
        machines.start_all()
        wait_for('"sealed"', machines)
        proxy.away = True
        proxy.cut()
        time.sleep(8)
        proxy.away = False
        machines.wait("coordinator", *SITES, timeout_s=180)
        assert digest_of(machines.final) == simulated(tmp_path)
    finally:
        proxy.close()
        machines.end()


def test_resets_in_the_middle_of_transfers_cost_no_bit(tmp_path: Path) -> None:
    model = {"w": np.linspace(-1, 1, 3_000_000, dtype=np.float32)}
    settings = replace(SETTINGS, quorum=3, clipping_norm=1e5, rounds=3)
    machines = Machines(tmp_path / "f", settings, model)
    proxy = behind_proxy(machines, bytes_per_s=6_000_000)
    try:
        machines.start_all()
        marks = [8_000_000, 18_000_000, 30_000_000]
        while marks and machines.processes["coordinator"].poll() is None:
            if proxy.moved > marks[0]:
                marks.pop(0)
                proxy.cut()
            time.sleep(0.01)
        machines.wait("coordinator", *SITES, timeout_s=180)
        assert not marks
        assert np.array_equal(
            Tensors(machines.final)["w"], ((model["w"] + np.float32(1)) + np.float32(1)) + np.float32(1)
        )
    finally:
        proxy.close()
        machines.end()


def test_a_line_of_fifty_kilobytes_a_second_is_enough_for_a_small_model(tmp_path: Path) -> None:
    settings = replace(SETTINGS, quorum=3, rounds=2, deadline_s=60.0)
    machines = Machines(tmp_path / "f", settings, build_model())
    proxy = behind_proxy(machines, bytes_per_s=50_000)
    try:
        machines.start_all()
        machines.wait("coordinator", *SITES, timeout_s=180)
        assert '"absent":[]' in machines.read_audit()
    finally:
        proxy.close()
        machines.end()


@pytest.mark.slow
def test_twenty_kills_of_the_coordinator_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    settings = replace(SETTINGS, quorum=3, rounds=24, give_up_s=300.0)
    machines = Machines(tmp_path / "f", settings, build_model())
    machines.seconds = 0.5
    rng = np.random.default_rng(int(os.environ.get("CONSILIUM_SEED", "20")))
    kills = 0
    try:
        machines.start_all()
        while kills < 20:
            time.sleep(float(rng.uniform(2.0, 7.0)))
            if machines.processes["coordinator"].poll() is not None:
                break
            machines.kill("coordinator")
            machines.start("coordinator")
            kills += 1
        machines.wait("coordinator", *SITES, timeout_s=300)
        assert kills == 20
        assert digest_of(machines.final) == simulated(tmp_path, settings=settings)
    finally:
        machines.end()


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs unshare and root")
def test_everything_works_in_a_network_of_loopback_alone(tmp_path: Path) -> None:
    name = test_the_same_file_runs_simulated_and_real_with_the_same_bits.__name__
    here = f"{Path(__file__).relative_to(REPOSITORY)}::{name}"
    inner = f"ip link set lo up && {sys.executable} -m pytest -q -m network -p no:cacheprovider {here}"
    result = subprocess.run(
        ["unshare", "-n", "sh", "-c", inner], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-500:]
