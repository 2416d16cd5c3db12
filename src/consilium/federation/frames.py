"""One request or answer on any transport: four bytes of length, a small JSON header, then raw bytes."""

import json
from typing import Any

from consilium.errors import DataError
from consilium.federation.tensors import parse_strict_json

MAX_HEADER_BYTES = 512 * 1024
CHUNK_BYTES = 2**19
"""Models and updates travel in pieces of at most this size: a reset costs one piece."""

MIN_CHUNK_BYTES = 2**14
"""A site whose pieces get lost asks for smaller ones, down to this."""

MAX_FRAME_BYTES = 4 + MAX_HEADER_BYTES + CHUNK_BYTES


def encode_frame(header: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """Header and body as one byte string."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, body))


def decode_frame(frame: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of a frame.

    Raises:
        DataError: If it is too large, or not a frame.
    """
    if not 4 <= len(frame) <= MAX_FRAME_BYTES:
        raise DataError(f"frame: must have 4 to {MAX_FRAME_BYTES} bytes; found {len(frame)}.")
    length = int.from_bytes(frame[:4], "little")
    if length > min(MAX_HEADER_BYTES, len(frame) - 4):
        raise DataError(f"frame: its header says {length} bytes; {len(frame) - 4} follow.")
    return parse_strict_json(memoryview(frame)[4 : 4 + length]), memoryview(frame)[4 + length :]
