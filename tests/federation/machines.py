"""A federation over FLARE as real processes on loopback, for tests and benchmarks; needs nvflare."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from consilium.federation.engine import kit
from consilium.federation.engine.supervise import ALLOCATOR, REFUSED
from consilium.federation.federation_file import Coordinator
from consilium.federation.parameters import Parameters
from consilium.federation.service import INITIAL
from consilium.federation.settings import FederationSettings
from consilium.federation.store import FINAL
from consilium.federation.tensors import encode_tensors
from tests.data import REPOSITORY


def find_free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def format_toml(settings: FederationSettings, port: int) -> str:
    """The federation file."""
    lines = [
        f'name = "{settings.name}"',
        f"rounds = {settings.rounds}",
        f"quorum = {settings.quorum}",
        f"deadline_s = {settings.deadline_s}",
        f"give_up_s = {settings.give_up_s}",
        f"presence_s = {settings.presence_s}",
        f"clipping_norm = {settings.clipping_norm}",
    ]
    for site in settings.sites:
        lines += ["[[sites]]", f'name = "{site.name}"', f"cases = {site.cases}"]
    lines += ["[coordinator]", 'host = "localhost"', f"port = {port}"]
    return "\n".join(lines) + "\n"


TEMPLATE_PORT = 58702
"""Stands for the port in kits that are copied; nothing listens there."""


def make_kits(names: tuple[str, ...]) -> Path:
    """A folder with the kits of a coordinator and of sites, as their own verbs make them."""
    folder = Path(tempfile.mkdtemp(prefix="consilium-kits-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    home = folder / "coordinator"
    fingerprint = kit.init_authority(home, "toy", Coordinator(host="localhost", port=TEMPLATE_PORT))
    for name in names:
        (folder / name).mkdir()
        request = kit.write_request(folder / name, "toy", name)
        carried = Path(shutil.copy(request, home))
        signed = Path(shutil.copy(kit.approve_request(home, carried), folder / name))
        kit.build_kit(folder / name, signed, fingerprint)
    return folder


@functools.cache
def make_kits_once(names: tuple[str, ...]) -> Path:
    """The same, once per process: a certificate takes seconds."""
    return make_kits(names)


class Machines:
    """Folders and processes: ``coordinator`` and one per site.

    Args:
        folder: Where everything lies.
        settings: The federation.
        model: The first model.
        own_authority: With certificates of an authority of its own, not the one that all others share.
    """

    def __init__(
        self, folder: Path, settings: FederationSettings, model: Parameters, *, own_authority: bool = False
    ) -> None:
        self.folder = folder
        self.settings = replace(settings, presence_s=5.0)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.seconds = 0.0
        self.environments: dict[str, dict[str, str]] = {}
        self.port = port = find_free_port()
        text = format_toml(self.settings, port)
        names = tuple(site.name for site in settings.sites)
        made = make_kits(names) if own_authority else make_kits_once(names)
        for name in ("coordinator", *names):
            place = folder / name
            shutil.copytree(made / name / "kit", place / "kit")
            for file in (place / "kit" / "startup").glob("*.json"):
                file.write_text(file.read_text().replace(str(TEMPLATE_PORT), str(port)))
            (place / "federation.toml").write_text(text)
        (folder / "coordinator" / INITIAL).write_bytes(encode_tensors(model))
        for name in names:
            (folder / name / "site.toml").write_text(
                f'name = "{name}"\ntraining = "tests.federation.training_at_home:build"\n'
                f'approved = "{self.settings.digest[:16]}"\npoll_s = 0.1\n'
            )

    def go_through(self, site: str, port: int) -> None:
        """Let a site reach the coordinator through another port of this machine: a proxy's."""
        path = self.folder / site / "kit" / "startup" / "fed_client.json"
        table = json.loads(path.read_text())
        table["servers"][0]["service"]["target"] = f"localhost:{port}"
        path.write_text(json.dumps(table))

    def leave_unencrypted(self) -> None:
        """Without TLS, as peers are measured; hospitals have no such setting."""
        for name, part in (
            ("coordinator", "server"),
            *((site.name, "client") for site in self.settings.sites),
        ):
            path = self.folder / name / "kit" / "startup" / f"fed_{part}.json"
            table = json.loads(path.read_text())
            target = table["servers"][0] if part == "server" else table["client"]
            target["connection_security"] = "clear"
            path.write_text(json.dumps(table))

    def start(self, name: str, *, identity: str = "") -> None:
        """Start one process; ``identity`` where the folder's site goes by another name than the folder."""
        if name == "coordinator":
            command = kit.configure_coordinator(self.folder / name, sites=len(self.settings.sites))
        else:
            command = kit.configure_site(self.folder / name / "site.toml", identity or name)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY))),
            "CONSILIUM_TEST_SECONDS": str(self.seconds),
            "HOME": str(self.folder / name),
            **ALLOCATOR,
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment | self.environments.get(name, {}),
                cwd=self.folder,
            )

    def start_all(self) -> None:
        """The coordinator first; sites would wait for it anyway."""
        for name in ("coordinator", *(site.name for site in self.settings.sites)):
            self.start(name)

    def hold(self, *names: str) -> None:
        """Let these sites wait in their training until `release`."""
        for name in names:
            (self.folder / name / "hold").touch()

    def release(self, *names: str) -> None:
        """Let them go on."""
        for name in names:
            (self.folder / name / "hold").unlink()

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def wait(self, *names: str, timeout_s: float = 300.0) -> None:
        """Until these processes have ended well.

        Raises:
            AssertionError: With the log's end, if one did not.
        """
        until = time.monotonic() + timeout_s
        for name in names:
            while self.processes[name].poll() is None and time.monotonic() < until:
                self.revive()
                time.sleep(0.05)
            code = self.processes[name].poll()
            assert code == 0, f"{name}: {code}\n{self.read_log(name)[-3000:]}"

    def revive(self) -> None:
        """Start again the sites that FLARE gave up, as `supervise_site` does; kills and refusals stay."""
        for name in [site.name for site in self.settings.sites if site.name in self.processes]:
            if self.processes[name].poll() not in (None, 0, REFUSED, -signal.SIGKILL):
                self.start(name)

    def read_log(self, name: str) -> str:
        """What a process said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    @property
    def final(self) -> bytes:
        """The final model at the coordinator."""
        return (self.folder / "coordinator" / FINAL).read_bytes()

    def read_audit(self) -> str:
        """The coordinator's log."""
        return (self.folder / "coordinator" / "journal" / "audit.jsonl").read_text()

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()


class Proxy:
    """A TCP proxy to a port of this machine that can be slow, cut connections, and be away.

    Args:
        port: Where to.
        bytes_per_s: Speed of each direction of each connection; 0 for no limit.
    """

    def __init__(self, port: int, *, bytes_per_s: int = 0) -> None:
        self.away = False
        self.moved = 0
        self._target = port
        self._rate = bytes_per_s
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, in the middle of whatever it carries."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def close(self) -> None:
        """Stop."""
        self.away = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.away:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._open += [near, far]
                threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(2**14):
                sink.sendall(piece)
                self.moved += len(piece)
                if self._rate:
                    time.sleep(len(piece) / self._rate)
        for end in (source, sink):
            end.close()
