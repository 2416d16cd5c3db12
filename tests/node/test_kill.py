"""Series from 4 senders at once, the node killed −9 again and again: each contoured once, none lost."""

import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from consilium.node.queue import Queue
from consilium.node.service import QUEUE
from tests.node.network import LOOPBACK, Pacs, associate, named_series, series, until

SENDERS, SLICES = 4, 4
SEED = 20261125


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int, pacs_port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.node.node_program", str(folder), str(port), str(pacs_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "listening"
    return process


def send_all(share: Sequence[Sequence[Dataset]], port: int, attempts: list[int]) -> None:
    """As a scanner does, one association for each series."""
    for images in share:
        send_series(images, port, attempts)


def send_series(images: Sequence[Dataset], port: int, attempts: list[int]) -> None:
    """What had no success is sent again in a new association, until all had."""
    todo = list(images)
    while todo:
        attempts[0] += 1
        assoc = associate(port)
        if not assoc.is_established:
            time.sleep(0.2)
            continue
        while todo and assoc.is_established:
            try:
                status = assoc.send_c_store(todo[0]).get("Status")
            except RuntimeError:
                break
            if status == 0x0000:
                todo.pop(0)
            else:
                break
        if assoc.is_established:
            assoc.release()


@pytest.mark.network
@pytest.mark.parametrize(("count", "kills"), [(40, 5), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_every_series_is_contoured_exactly_once_through_kills(tmp_path: Path, count: int, kills: int) -> None:
    images = [series(tmp_path, f"case {k}", SLICES, seed=k) for k in range(count)]
    shares = [images[k::SENDERS] for k in range(SENDERS)]
    pacs, port, folder = Pacs(), free_port(), tmp_path / "node"
    pacs_port = pacs.destination.port
    process = start(folder, port, pacs_port)
    attempts = [[0] for _ in shares]
    senders = [
        threading.Thread(target=send_all, args=(share, port, tries), daemon=True)
        for share, tries in zip(shares, attempts, strict=True)
    ]
    for sender in senders:
        sender.start()
    chance = random.Random(SEED)
    at_kill = []
    for _ in range(kills):
        time.sleep(chance.uniform(0.05, 2.0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        queue = Queue(folder / QUEUE)
        at_kill.append(
            [queue.table(f"SELECT count(*) AS n FROM {t}")[0]["n"] for t in ("objects", "results")]
        )
        queue.close()
        process = start(folder, port, pacs_port)
    for sender in senders:
        sender.join(300)
    assert not any(sender.is_alive() for sender in senders)
    queue = Queue(folder / QUEUE)
    done = "SELECT count(*) AS n FROM sendings WHERE state = 'sent'"
    until(lambda: queue.table(done)[0]["n"] >= count, timeout_s=300)
    time.sleep(2)
    assert queue.table("SELECT count(*) AS n FROM objects")[0]["n"] == count * SLICES
    states = queue.table("SELECT state, revision, count(*) AS n FROM series GROUP BY state, revision")
    assert states == [{"state": "contoured", "revision": SLICES, "n": count}]
    assert queue.table("SELECT count(*) AS n FROM results")[0]["n"] == count
    got = defaultdict(set)
    for structures in list(pacs.got):
        got[named_series(structures)].add(str(structures.SOPInstanceUID))
    assert set(got) == {str(one[0].SeriesInstanceUID) for one in images}
    assert {len(uids) for uids in got.values()} == {1}
    sys.stdout.write(
        f"(objects, results) at each kill: {at_kill}; associations tried: {sum(a[0] for a in attempts)}; "
        f"{len(pacs.got)} sendings of {count} results, all repeated ones under the same UID\n"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    queue.close()
    pacs.stop()
    gc.collect()
