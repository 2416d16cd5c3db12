"""A review page on a free port with phantom patients, for tests and benchmarks in a browser."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import uvicorn

from consilium.cases.dataset import Dataset
from consilium.review.app import build_app
from consilium.review.desk import Export
from consilium.review.places import Place, place_of
from consilium.review.security import new_token

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def serving(dataset: Dataset, export: Export) -> AbstractContextManager[str]:
    """`serving_places` of one dataset."""
    return serving_places([place_of(dataset)], export)


@contextmanager
def serving_places(places: Sequence[Place], export: Export) -> Iterator[str]:
    """The address, with its token, of a page that is served until the block ends."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        token = new_token()
        app = build_app(places, token=token, port=port, export=export)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/?token={token}"
        server.should_exit = True
        thread.join(timeout=5)


def find_chromium() -> Path | None:
    """Debian's Chromium, if it is installed."""
    path = Path("/usr/bin/chromium")
    return path if path.exists() else None
