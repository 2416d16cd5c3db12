"""Loaded by Python at its start where a test puts this folder on the path: keeps what TLS carries, in plain.

Outside TLS only ciphertext can be captured, which shows nothing; here is what the other side can read.
"""

import os
import ssl
from pathlib import Path
from typing import Any

_TAPE = os.environ.get("CONSILIUM_TEST_TAPE")


def _install(tape: Path) -> None:
    send, read = ssl.SSLSocket.send, ssl.SSLSocket.read

    def keep(content: bytes) -> None:
        with tape.open("ab") as file:
            file.write(content)

    def tapped_send(self: ssl.SSLSocket, data: Any, flags: int = 0) -> int:
        sent = send(self, data, flags)
        keep(bytes(memoryview(data)[:sent]))
        return sent

    def tapped_read(self: ssl.SSLSocket, len: int = 1024, buffer: Any = None) -> Any:
        found = read(self, len, buffer)
        keep(found if buffer is None else bytes(memoryview(buffer)[:found]))
        return found

    ssl.SSLSocket.send = tapped_send  # type: ignore[method-assign]
    ssl.SSLSocket.read = tapped_read  # type: ignore[method-assign]


if _TAPE:
    _install(Path(_TAPE))
