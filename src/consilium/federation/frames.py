"""One request or answer on any transport: four bytes of length, a small JSON header, then raw bytes."""

import json
from typing import Any, TypeAlias

from consilium.errors import DataError
from consilium.federation.tensors import parse_strict_json

MAX_HEADER_BYTES = 512 * 1024
CHUNK_BYTES = 2**21
"""Models and updates travel in pieces of at most this size: a reset costs one piece."""

Bytes: TypeAlias = bytes | bytearray | memoryview

MAX_FRAME_BYTES = 4 + MAX_HEADER_BYTES + CHUNK_BYTES


def encode_frame(header: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """Header and body as one byte string."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, body))


class PieceSize:
    """How large the pieces of a transfer are: small at first, larger on a quick line, smaller on a slow."""

    FIRST = 2**18
    LEAST = 2**14
    QUICK_S = 0.5
    SLOW_S = 3.0

    def __init__(self) -> None:
        self.bytes = self.FIRST

    def learn(self, seconds: float, moved: int) -> None:
        """A piece of ``moved`` bytes took so long, there and back."""
        if seconds > self.SLOW_S:
            self.shrink()
        elif seconds < self.QUICK_S and moved >= self.bytes:
            self.bytes = min(CHUNK_BYTES, 2 * self.bytes)

    def shrink(self) -> None:
        """A piece was lost, or took long."""
        self.bytes = max(self.LEAST, self.bytes // 2)


def decode_frame(frame: Bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of a frame.

    Raises:
        DataError: If it is too large, or not a frame.
    """
    if not 4 <= len(frame) <= MAX_FRAME_BYTES:
        raise DataError(f"frame: must have 4 to {MAX_FRAME_BYTES} bytes; found {len(frame)}.")
    view = memoryview(frame)
    length = int.from_bytes(view[:4], "little")
    if length > min(MAX_HEADER_BYTES, len(frame) - 4):
        raise DataError(f"frame: its header says {length} bytes; {len(frame) - 4} follow.")
    return parse_strict_json(view[4 : 4 + length]), view[4 + length :]
