"""The training cache: blosc2 arrays that crops are read from, made on demand, deletable at any time.

A file's name holds its key, its length and its checksum, so that a damaged or half-written one is known from
its name alone and made anew. Files are mapped into memory: a reader keeps what it opened, deleted or not.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import blosc2
import numpy as np

from consilium.errors import DatasetError
from consilium.types import Array

CHUNK_EDGE = 64
BLOCK_EDGE = 32
ATTEMPTS = 3
KEY_HEX_DIGITS = 32


class CropReader(Protocol):
    """What `cached_array` returns: indexing reads only the blocks that the crop touches."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    def __getitem__(self, index: Any) -> Array:
        """The values of a crop, e.g. ``reader[10:74, 0:64, 5:69]``, or of everything by ``reader[:]``."""


def cache_key(content_sha256: str, **preprocessing: Any) -> str:
    """The key of an array derived from content of this digest by this preprocessing.

    Args:
        content_sha256: Digest of what it is derived from, e.g. `ImageRecord.content_sha256`.
        preprocessing: JSON-able settings that change the result, e.g. the target grid; another value gives
            another key.
    """
    settings = json.dumps([content_sha256, preprocessing], sort_keys=True, allow_nan=False)
    return hashlib.sha256(settings.encode()).hexdigest()[:KEY_HEX_DIGITS]


def cached_array(folder: Path, key: str, build: Callable[[], Array]) -> CropReader:
    """The array of ``key``, from the cache or, the first time, from ``build``.

    Safe with several processes: one builds, the others wait. The first opening in a process checks the whole
    file's checksum; a damaged file is built anew.

    Args:
        folder: Of the cache; made if absent.
        key: Of `cache_key`.
        build: Returns the array, (..., Z, Y, X); the same for the same key.

    Returns:
        The array, compressed; index it to read a crop.

    Raises:
        DatasetError: If the cache cannot be kept, e.g. because something deletes it all the time.
        OSError: If the system cannot write, e.g. because the disk is full.
    """
    if not key.isalnum():
        raise DatasetError(f"cache: a key must be letters and digits; got {len(key)} characters.")
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            found = _open(folder, key)
            return found if found is not None else _build(folder, key, build)
    raise DatasetError(
        f"cache: must stay while it is used; it vanished {ATTEMPTS} times. "
        "End what deletes it, or use another folder."
    )


def _build(folder: Path, key: str, build: Callable[[], Array]) -> CropReader:
    shelf = folder / key[:2]
    shelf.mkdir(parents=True, exist_ok=True)
    with _building(shelf):
        found = _open(folder, key)
        if found is not None:
            return found
        frame = _compressed(build())
        path = shelf / f"{key}-{len(frame)}-{zlib.crc32(frame):08x}.b2nd"
        temporary = shelf / f".{key}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(frame)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return _mapped(path)


def _compressed(array: Array) -> bytes:
    """The array as one blosc2 frame, made in memory so that a full disk is noticed when it is written."""
    lead = array.ndim - 3
    frame: bytes = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=tuple([1] * lead + [min(CHUNK_EDGE, n) for n in array.shape[lead:]]),
        blocks=tuple([1] * lead + [min(BLOCK_EDGE, n) for n in array.shape[lead:]]),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1),
    ).to_cframe()
    return frame


def _open(folder: Path, key: str) -> CropReader | None:
    """The undamaged file of ``key``; None if there is none. Damaged ones are removed."""
    for path in (folder / key[:2]).glob(f"{key}-*.b2nd"):
        status = path.stat()
        if _is_undamaged(path, status.st_ino, status.st_mtime_ns, status.st_size):
            return _mapped(path)
        path.unlink(missing_ok=True)
    return None


@lru_cache(maxsize=65536)
def _is_undamaged(path: Path, inode: int, modified_ns: int, size: int) -> bool:
    """Whether a file holds what its name says; looked up once per process and version of the file."""
    _, length, checksum = path.stem.split("-")
    return str(size) == length and f"{zlib.crc32(path.read_bytes()):08x}" == checksum


def _mapped(path: Path) -> CropReader:
    reader: CropReader = blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
    return reader


@contextmanager
def _building(shelf: Path) -> Iterator[None]:
    """One builder at a time on a shelf, across processes."""
    descriptor = os.open(shelf / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
