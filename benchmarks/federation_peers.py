"""Rounds of stock NVIDIA FLARE and of Flower on the work of benchmarks/federation_round.py.

FLARE runs its FedAvg in its own multi-process simulator: one process per site, no TLS. Flower runs as in a
deployment: a SuperLink and one SuperNode per site as processes on loopback, no TLS, telemetry off. Both are
spared the encryption that ours does.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.federation.machines import find_free_port

LIMIT_S = 560.0

FLARE = """
import sys
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv
import numpy as np
count, rounds, elements, workspace = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = np.zeros(elements, dtype=np.float32)
path = workspace + "/model.npy"
np.save(path, model)
recipe = NumpyFedAvgRecipe(name="stock", initial_ckpt=path, min_clients=count, num_rounds=rounds,
                           train_script=workspace + "/client.py", train_args="")
recipe.execute(SimEnv(num_clients=count, num_threads=count, workspace_root=workspace + "/sim"))
"""

FLARE_CLIENT = """
import time
import nvflare.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    open("{times}", "a").write(f"{{model.current_round}} {{time.time()}}\\n")
    params = {{name: value + int(flare.get_site_name()[-1]) for name, value in model.params.items()}}
    flare.send(flare.FLModel(params=params, metrics={{}}, meta={{"NUM_STEPS_CURRENT_ROUND": 1}}))
"""

FLOWER_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "cost"
version = "1.0.0"
description = "cost of a round"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "cost.server:app"
clientapp = "cost.client:app"
[tool.flwr.app.config]
"""

FLOWER_CLIENT = """
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message: Message, context: Context):
    arrays = [a + 1 + context.node_id % 3 for a in message.content["arrays"].to_numpy_ndarrays()]
    arrays = ArrayRecord(numpy_ndarrays=[a.astype("float32") for a in arrays])
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
"""

FLOWER_SERVER = """
import time
import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
class Timed(FedAvg):
    def configure_train(self, server_round, *rest):
        with open("TIMES", "a") as file:
            file.write(f"{server_round} {time.time()}\\n")
        return super().configure_train(server_round, *rest)
@app.main()
def main(grid: Grid, context: Context):
    said = context.run_config
    arrays = [np.zeros(said["elements"] // 10, np.float32) for _ in range(10)]
    count = said["sites"]
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=count,
                     min_available_nodes=count, min_evaluate_nodes=0)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(numpy_ndarrays=arrays), num_rounds=said["rounds"],
                   timeout=400)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds between rounds, and processor seconds of all processes together per round."""

    gaps: list[float]
    cpu: float


class Meter:
    """Processor seconds of some processes and all their descendants, also of those that have ended."""

    def __init__(self, *pids: int) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]
        self._last: dict[tuple[int, float], float] = {}
        self._seen: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._done.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> float:
        """Processor seconds from one wall-clock second to another."""
        early = max((cpu for at, cpu in self._seen if at <= start_s), default=0.0)
        late = max((cpu for at, cpu in self._seen if at <= end_s), default=0.0)
        return late - early

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for root in self._roots:
                try:
                    for process in (root, *root.children(recursive=True)):
                        times = process.cpu_times()
                        self._last[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:
                    continue
            self._seen.append((time.time(), sum(self._last.values())))


def read_cost(times: Path, meter: Meter) -> Cost:
    """From a file of "round second" lines; the earliest line of a round counts."""
    firsts: dict[int, float] = {}
    for line in times.read_text().splitlines():
        number, second = line.split()
        firsts[int(number)] = min(float(second), firsts.get(int(number), float("inf")))
    starts = [firsts[number] for number in sorted(firsts)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    return Cost(gaps, meter.between(starts[0], starts[-1]) / len(gaps))


def run_flare(megabytes: int, count: int, rounds: int, folder: Path) -> Cost | None:
    """Stock FLARE's FedAvg in its simulator, in this interpreter's environment; None if it did not run."""
    folder.mkdir(parents=True)
    times = folder / "times.txt"
    (folder / "client.py").write_text(FLARE_CLIENT.format(times=times))
    (folder / "stock.py").write_text(FLARE)
    elements = megabytes * 10**6 // 4
    command = [sys.executable, str(folder / "stock.py"), *map(str, (count, rounds, elements, folder))]
    environment = os.environ | {"HOME": str(folder), "PYTHONPATH": ""}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        return _finish(process, [process], times, folder / "log")


def run_flower(python: str, megabytes: int, count: int, rounds: int, folder: Path) -> Cost | None:
    """Flower's FedAvg in the environment of ``python``; None if it did not run."""
    package, home = folder / "app" / "cost", folder / "home"
    package.mkdir(parents=True)
    home.mkdir()
    sizes = f"elements = {megabytes * 10**6 // 4}\nrounds = {rounds}\nsites = {count}\n"
    (folder / "app" / "pyproject.toml").write_text(FLOWER_PROJECT + sizes)
    (package / "__init__.py").touch()
    (package / "client.py").write_text(FLOWER_CLIENT)
    (package / "server.py").write_text(FLOWER_SERVER.replace("TIMES", str(folder / "times.txt")))
    ports = [find_free_port() for _ in range(count + 1)]
    link = f"127.0.0.1:{ports[0]}"
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    programs = Path(python).parent
    environment = os.environ | {
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    server = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    commands = [[*server, "--port", str(ports[0])]]
    for port in ports[1:]:
        commands.append(["flower-supernode", "--insecure", "--superlink", link, "--port", str(port)])
    processes = []
    with (folder / "log").open("wb") as log:
        for command in [*commands, ["flwr", "run", str(folder / "app"), "here", "--stream"]]:
            path = str(programs / command[0])
            processes.append(
                subprocess.Popen([path, *command[1:]], stdout=log, stderr=log, env=environment, cwd=folder)
            )
            time.sleep(10 if command is commands[0] else 1)
        return _finish(processes[-1], processes, folder / "times.txt", folder / "log")


def _finish(
    last: subprocess.Popen[bytes], processes: list[subprocess.Popen[bytes]], times: Path, log: Path
) -> Cost | None:
    meter = Meter(*(process.pid for process in processes))
    try:
        code = last.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        meter.stop()
        for process in processes:
            for child in _descendants(process.pid):
                child.kill()
            process.kill()
            process.wait()
    if not times.is_file() or len(times.read_text().splitlines()) < 2:
        print(f"{log.parent.name} did not run ({code}):", log.read_text(errors="replace")[-800:])
        return None
    return read_cost(times, meter)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
