"""Certificates and FLARE's configuration: a hospital's key never leaves it, and no side takes jobs or code
from another.
"""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

from consilium.errors import ConfigurationError, FederationError
from consilium.federation.federation_file import Coordinator

ROOT_DAYS = 3650
SITE_DAYS = 1095
PERMISSIONS = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
    "byoc",
)


def init_authority(folder: Path, federation: str, coordinator: Coordinator) -> str:
    """Make the federation's certificate authority and the coordinator's own kit, unless they are there.

    Returns:
        The fingerprint of the root certificate, to be told to every hospital by another way than the kit.

    Raises:
        ConfigurationError: If they were made for another name or place.
    """
    authority = folder / "authority"
    server = {"host": coordinator.host, "fed_learn_port": coordinator.port, "admin_port": coordinator.port}
    profile = {"name": federation, "scheme": "tcp", "connection_security": "mtls", "server": server}
    if (folder / "kit").is_dir():
        _check_profile(authority / "profile.yml", profile)
        return compute_fingerprint(authority / "ca" / "rootCA.pem")
    _set_aside(folder)
    authority.mkdir(parents=True)
    _write_yaml(authority / "profile.yml", profile)
    # Without --org: FLARE 2.9 leaves the organisation out of the issuer, and the chain would not verify.
    words = ("--profile", authority / "profile.yml", "-o", authority / "ca")
    _run(folder, "cert", "init", *words, "--valid-days", ROOT_DAYS)
    request = write_request(folder, federation, coordinator.host, kind="server", coordinator=coordinator)
    signed = approve_request(folder, request)
    fingerprint = compute_fingerprint(authority / "ca" / "rootCA.pem")
    build_kit(folder, signed, fingerprint)
    return fingerprint


def _check_profile(path: Path, profile: dict[str, Any]) -> None:
    """Refuse certificates that were made before the federation file was changed."""
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != profile:
        raise ConfigurationError(
            "federation: the certificates must be for the name, host and port in federation.toml; they were "
            "made for others. Restore these, or remove kit and authority here and invite every hospital anew."
        )


def _set_aside(folder: Path) -> None:
    """Begin anew where an earlier try was interrupted; its authority is kept once, in case it was needed."""
    authority, unfinished = folder / "authority", folder / "authority.unfinished"
    if authority.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        authority.rename(unfinished)
    for name in ("request", "packed"):
        shutil.rmtree(folder / name, ignore_errors=True)


def write_request(
    folder: Path, federation: str, name: str, *, kind: str = "client", coordinator: Coordinator | None = None
) -> Path:
    """Make a key and a certificate request in ``folder``; only the request may leave. Returns the request's
    file.
    """
    participant: dict[str, Any] = {
        "name": name,
        "type": kind,
        "org": name.replace(".", "_").replace("-", "_"),
    }
    if coordinator is not None:
        participant |= {"fed_learn_port": coordinator.port, "admin_port": coordinator.port}
    _write_yaml(folder / "participant.yml", {"name": federation, "participants": [participant]})
    _run(folder, "cert", "request", "-p", folder / "participant.yml", "--out", folder / "request")
    (folder / "participant.yml").unlink()
    return folder / "request" / f"{name}.request.zip"


def approve_request(folder: Path, request: Path) -> Path:
    """Sign a hospital's request at the coordinator; returns the signed file to send back."""
    authority, signed = folder / "authority", request.with_suffix("").with_suffix(".signed.zip")
    words = ("-c", authority / "ca", "--profile", authority / "profile.yml", "--out", signed)
    _run(folder, "cert", "approve", request, *words, "--valid-days", SITE_DAYS)
    return signed


def build_kit(folder: Path, signed: Path, fingerprint: str) -> Path:
    """Join the signed certificate with the key that stayed here; returns FLARE's workspace, ``folder/kit``.

    Raises:
        FederationError: If the root certificate's fingerprint is not the one that was told.
    """
    plain = fingerprint.removeprefix("SHA256:").replace(":", "").lower()
    words = ("--request-dir", folder / "request", "--fingerprint", plain, "-w", folder / "packed")
    _run(folder, "package", signed, *words)
    built = list((folder / "packed").glob("*/prod_*/*"))
    if len(built) != 1:
        raise FederationError(f"kit: one participant was expected in {signed.name}; found {len(built)}.")
    shutil.move(built[0], folder / "kit")
    shutil.rmtree(folder / "packed")
    return folder / "kit"


def compute_fingerprint(certificate: Path) -> str:
    """SHA-256 of a certificate in DER, as FLARE writes it: 64 hexadecimal digits."""

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def configure_coordinator(folder: Path, *, sites: int) -> list[str]:
    """Write the server's configuration and return the command that runs it."""
    folder = folder.resolve()
    kit, store = folder / "kit", folder / "flare"
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    place = {"root_dir": str(store / "snapshots"), "uri_root": "/"}
    persistor = "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor"
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [],
        "servers": [
            {"admin_storage": "transfer", "max_num_clients": max(100, 2 * sites), "heart_beat_timeout": 600}
        ],
        "snapshot_persistor": {
            "path": persistor,
            "args": {"uri_root": "/", "storage": {"path": storage, "args": place}},
        },
        "components": [
            {
                "id": "job_scheduler",
                "path": "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                "args": {"max_jobs": 1},
            },
            {
                "id": "job_manager",
                "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                "args": {"uri_root": str(store / "jobs"), "job_store_id": "job_store"},
            },
            {"id": "job_store", "path": storage},
            _component("CoordinatorComponent", {"folder": str(folder.resolve())}),
        ],
    }
    _write_local(kit, resources)
    return _command("server", kit, "coordinator")


def configure_site(site_file: Path, name: str) -> list[str]:
    """Write the client's configuration and return the command that runs it."""
    kit = site_file.parent / "kit"
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [],
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [_component("SiteComponent", {"site_file": str(site_file.resolve())})],
    }
    _write_local(kit, resources)
    return _command("client", kit, name)


def _component(name: str, args: dict[str, str]) -> dict[str, Any]:
    return {"id": "consilium", "path": f"consilium.federation.engine.components.{name}", "args": args}


def _command(kind: str, kit: Path, name: str) -> list[str]:
    settings = ["secure_train=true", f"org={name.replace('-', '_')}", "config_folder="]
    if kind == "client":
        settings.insert(1, f"uid={name}")
    module = f"nvflare.private.fed.app.{kind}.{kind}_train"
    return [
        sys.executable,
        "-m",
        module,
        "-m",
        str(kit.resolve()),
        "-s",
        f"fed_{kind}.json",
        "--set",
        *settings,
    ]


def _write_local(kit: Path, resources: dict[str, Any]) -> None:
    """Configuration in which nobody may submit a job, run a command or bring code."""
    if not kit.is_dir():
        raise ConfigurationError(
            "kit: the certificate must be there first; it is not. Enrol, and let the coordinator approve."
        )
    local = kit / "local"
    nobody = {
        "permissions": {
            role: dict.fromkeys(PERMISSIONS, "none") for role in ("project_admin", "org_admin", "lead")
        }
    }
    (local / "resources.json").write_text(json.dumps(resources, indent=1), encoding="utf-8")
    (local / "authorization.json").write_text(
        json.dumps({"format_version": "1.0"} | nobody, indent=1), encoding="utf-8"
    )
    for name in ("log_config.json", "privacy.json"):
        default = local / f"{name}.default"
        if default.is_file() and not (local / name).exists():
            shutil.copy(default, local / name)
    (kit / "transfer").mkdir(exist_ok=True)


def _run(folder: Path, *words: object) -> None:
    """Run FLARE's own command, with its notes kept in ``folder`` and not in the user's home."""
    home = folder / "flare"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "consilium.federation.engine.backdate", *map(str, words)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HOME": str(home.resolve())}, check=False
    )
    if result.returncode:
        if "No module named 'nvflare'" in result.stderr:
            raise ConfigurationError(
                "federation: the transport is not installed. pip install 'consilium[federation]'."
            )
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise FederationError(f"federation: {' '.join(map(str, words[:2]))} failed: {' '.join(last)}")


def _write_yaml(path: Path, table: dict[str, Any]) -> None:
    # JSON is YAML.
    path.write_text(json.dumps(table), encoding="utf-8")
