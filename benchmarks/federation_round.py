"""What does a round cost between machines, beside training?

Real processes on loopback over mTLS, training that adds one to every number. ``ours`` is seconds of overhead
per round (from one commit to the next), ``peers`` the same of stock FLARE's FedAvg in its own multi-process
simulator (one process per site, without mTLS: to its advantage). ``ratio`` is ours / stock; the limit is 1.
Also printed: bytes on the wire over the parameters' own (exact where the program runs as root and can make a
network of its own), and the coordinator's peak memory over the model's size. Needs nvflare: run it with an
interpreter that has ``consilium[federation]`` (see requirements-peers/flare.txt).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

from benchmarks.measure import median, report
from consilium.federation.settings import FederationSettings, SiteEnrolment
from tests.federation.machines import Machines

STOCK = """
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

CLIENT = """
import time
import nvflare.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    print("CONSILIUM_RECEIVED", model.current_round, time.time(), flush=True)
    open("{times}", "a").write(f"{{model.current_round}} {{time.time()}}\\n")
    params = {{name: value + 1 for name, value in model.params.items()}}
    flare.send(flare.FLModel(params=params, metrics={{}}, meta={{"NUM_STEPS_CURRENT_ROUND": 1}}))
"""


def read_loopback_bytes() -> int:
    """Bytes that have passed over loopback in this network."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if "lo:" in line).split(":")[1].split()[0])


def run_ours(megabytes: int, count: int, rounds: int, folder: Path) -> dict[str, float]:
    """Seconds per round, wire ratio and coordinator peak of our federation."""
    elements = megabytes * 10**6 // 4
    model = {f"part.{n}": np.zeros(elements // 10, np.float32) for n in range(10)}
    sites = tuple(SiteEnrolment(name=f"site-{n}", cases=10) for n in range(count))
    settings = FederationSettings(
        name="cost",
        rounds=rounds,
        sites=sites,
        quorum=count,
        deadline_s=500.0,
        give_up_s=500.0,
        clipping_norm=1e5,
    )
    machines = Machines(folder, settings, model)
    peak, done = 0, threading.Event()
    before = read_loopback_bytes()
    machines.start_all()
    process = psutil.Process(machines.processes["coordinator"].pid)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        machines.wait("coordinator", *(site.name for site in sites), timeout_s=400)
    finally:
        done.set()
        machines.end()
        watcher.join()
    moved = read_loopback_bytes() - before
    lines = (folder / "coordinator" / "progress.jsonl").read_text().splitlines()
    commits = [event["at_s"] for event in map(json.loads, lines) if event["kind"] == "committed"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(commits)]
    own = sum(array.nbytes for array in model.values())
    return {
        "seconds": median(gaps),
        "least": min(gaps),
        "most": max(gaps),
        "wire": moved / (own * count * (2 * rounds + 1)),
        "memory": peak / own,
        "peak_mib": peak / 2**20,
    }


def run_stock(megabytes: int, count: int, rounds: int, folder: Path) -> float:
    """Seconds per round of stock FLARE's FedAvg in its simulator."""
    folder.mkdir(parents=True)
    (folder / "client.py").write_text(CLIENT.format(times=folder / "times.txt"))
    (folder / "stock.py").write_text(STOCK)
    command = [
        sys.executable,
        str(folder / "stock.py"),
        str(count),
        str(rounds),
        str(megabytes * 10**6 // 4),
        str(folder),
    ]
    environment = os.environ | {"HOME": str(folder), "PYTHONPATH": ""}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=500, check=False
    )
    if result.returncode or not (folder / "times.txt").exists():
        print("stock FLARE did not run:", (result.stderr or result.stdout)[-600:])
        return float("nan")
    firsts: dict[int, float] = {}
    for line in (folder / "times.txt").read_text().splitlines():
        number, second = line.split()
        firsts[int(number)] = min(float(second), firsts.get(int(number), float("inf")))
    starts = [firsts[number] for number in sorted(firsts)]
    return median([later - earlier for earlier, later in itertools.pairwise(starts)])


def main() -> None:
    """Measure the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", default="", help="e.g. 20x3,100x3,100x10")
    parser.add_argument("--rounds", type=int, default=0, help="from 2")
    arguments = parser.parse_args()
    if os.geteuid() == 0 and not arguments.isolated:
        inner = f"ip link set lo up && exec {sys.executable} {' '.join(sys.argv)} --isolated"
        sys.exit(subprocess.run(["unshare", "-n", "sh", "-c", inner], check=False).returncode)
    sizes = arguments.sizes or ("2x2" if arguments.quick else "20x3,100x3,100x10")
    ours, stock = {}, {}
    for size in sizes.split(","):
        megabytes, count = map(int, size.split("x"))
        rounds = arguments.rounds or (4 if arguments.quick else 5)
        with tempfile.TemporaryDirectory() as folder:
            ours[size] = run_ours(megabytes, count, rounds, Path(folder) / "ours")
            print(size, {name: round(value, 3) for name, value in ours[size].items()}, flush=True)
            if count <= 3:
                began = time.time()
                stock[size] = run_stock(megabytes, count, rounds, Path(folder) / "stock")
                print(
                    size,
                    f"stock FLARE {stock[size]:.3f} s per round ({time.time() - began:.0f} s in all)",
                    flush=True,
                )
    first = next(iter(ours))
    peers = {} if np.isnan(stock.get(first, np.nan)) else {"FLARE FedAvg (simulator)": stock[first]}
    ratio = ours[first]["seconds"] / stock[first] if peers else None
    report("overhead of a round", "s", ours[first]["seconds"], peers, limit=1.0, ratio=ratio)


if __name__ == "__main__":
    main()
