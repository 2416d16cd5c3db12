"""Several processes on one machine: the desk behind a Unix socket, each site proving its name by a token."""

import hmac
import os
import secrets
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from consilium.errors import FederationError
from consilium.federation.desk import Desk
from consilium.federation.frames import MAX_FRAME_BYTES

NONCE_BYTES = 32
MAX_HELLO_BYTES = 200
TIMEOUT_S = 30.0


@contextmanager
def serve_socket(desk: Desk, path: Path, tokens: Mapping[str, bytes]) -> Iterator[None]:
    """Answer sites on a Unix socket while the block runs.

    Args:
        desk: Who answers.
        path: The socket; only this user may use it.
        tokens: Site -> its secret.
    """
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = _Server(str(path), _Handler)
    finally:
        os.umask(before)
    server.desk, server.tokens = desk, dict(tokens)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        path.unlink(missing_ok=True)


class SocketCarrier:
    """A site's way to a desk behind a Unix socket; connects when needed, and again after a break."""

    def __init__(self, path: Path, site: str, token: bytes) -> None:
        self._path = path
        self._site = site
        self._token = token
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def __call__(self, frame: bytes) -> bytearray:
        """Send a frame and return the answer; OSError when the coordinator is not there."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                _send(self._connection, frame)
                return _receive(self._connection, MAX_FRAME_BYTES)
            except OSError:
                self._drop()
                raise

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self._drop()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(self._path))
            nonce = _receive(connection, NONCE_BYTES)
            _send(connection, self._site.encode() + b" " + _prove(self._token, nonce))
            if _receive(connection, 1) != b"+":
                raise FederationError(
                    f"site {self._site}: the coordinator does not accept its token. Ask for a new one."
                )
        except (OSError, FederationError):
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    desk: Desk
    tokens: dict[str, bytes]


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.request.settimeout(None)
        try:
            nonce = secrets.token_bytes(NONCE_BYTES)
            _send(self.request, nonce)
            name, _, proof = _receive(self.request, MAX_HELLO_BYTES).partition(b" ")
            site = name.decode("ascii", "replace")
            token = self.server.tokens.get(site, secrets.token_bytes(NONCE_BYTES))
            if not hmac.compare_digest(proof, _prove(token, nonce)):
                _send(self.request, b"-")
                return
            _send(self.request, b"+")
            while True:
                _send(self.request, self.server.desk.answer(site, _receive(self.request, MAX_FRAME_BYTES)))
        except OSError:
            return


def _prove(token: bytes, nonce: bytes | bytearray) -> bytes:
    return hmac.new(token, nonce, "sha256").hexdigest().encode()


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(4, "little"))
    connection.sendall(content)


def _receive(connection: socket.socket, max_bytes: int) -> bytearray:
    size = int.from_bytes(_read(connection, 4), "little")
    if size > max_bytes:
        raise ConnectionError(f"socket: at most {max_bytes} bytes; {size} are announced.")
    return _read(connection, size)


def _read(connection: socket.socket, size: int) -> bytearray:
    content, received = bytearray(size), 0
    view = memoryview(content)
    while received < size:
        piece = connection.recv_into(view[received:])
        if not piece:
            raise ConnectionResetError("socket: the other side hung up.")
        received += piece
    return content
