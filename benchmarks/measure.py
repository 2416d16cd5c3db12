"""What every benchmark shares: CPU-seconds, peak memory, and the one JSON line at the end."""

import json
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def cpu_seconds(work: Callable[[], Any], repeats: int = 3) -> list[float]:
    """CPU-seconds (user + system, all threads) of each of ``repeats`` calls, after one warm-up call."""
    work()
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        seconds.append(time.process_time() - before)
    return seconds


def median(values: list[float]) -> float:
    """The figure to quote; NaN when there is none."""
    return statistics.median(values) if values else float("nan")


def extra_peak_mib(work: Callable[[], Any], interval_s: float = 0.002) -> float:
    """Highest resident memory during ``work()`` above what was resident before it, in MiB (sampled)."""
    process = psutil.Process()
    before = process.memory_info().rss
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(interval_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (max(peak, process.memory_info().rss) - before) / 2**20


def process_peak_mib() -> float:
    """Highest resident memory of this process since its start, in MiB.

    Linux counts in ``ru_maxrss`` what the process had before ``exec``, that is its parent's memory too; VmHWM
    is this program's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(
    question: str,
    unit: str,
    ours: float,
    peers: dict[str, float],
    *,
    limit: float | None,
    ratio: float | None,
) -> None:
    """Print the benchmark's last line.

    Args:
        question: What was asked, in a sentence.
        unit: Unit of ``ours`` and of every peer's figure.
        ours: Our figure.
        peers: Package name -> its figure on the same work in this run.
        limit: The bar, in the unit of ``ratio`` or of ``ours``, as the program's docstring says; or None.
        ratio: The quotient that the program's docstring names, or None.
    """
    line = {"question": question, "unit": unit, "ours": ours, "peers": peers, "limit": limit, "ratio": ratio}
    print(json.dumps(line))
