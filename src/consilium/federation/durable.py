"""Files that are there whole or not at all, also after a power cut: temporary file, fsync, rename, fsync of
the folder.
"""

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from consilium.errors import FederationError


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """An open file that becomes ``path`` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def write_durably(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace ``path`` by ``content``; a reader sees the old content or the new one, never a part."""
    with replacing(path, sync=sync) as file:
        file.write(content)


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Add a line, or leave the file as it was: a disk that fills up on the way must not leave half of it."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        content = line.encode() + b"\n"
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """A folder, made when absent, kept to one process: until `close`, or until nobody holds this any more.

    Args:
        folder: Gets a file ``lock``.
        what: Says in the error what the folder is.

    Raises:
        FederationError: If another process keeps it.
    """

    def __init__(self, folder: Path, what: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            self.close()
            raise FederationError(
                f"{what} {folder.name}: one process at a time may use it; another one does. End that one "
                "first."
            ) from fault

    def close(self) -> None:
        """Let another process use the folder."""
        self._end()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder``."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)
