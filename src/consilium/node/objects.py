"""Received and made objects on disk, each under the digest of its content: durable before it counts."""

import hashlib
import shutil
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from consilium.cases.files import sync_folder, write_atomically

DRAFT = "draft-"
META_LENGTH_AT, META_AT = 140, 144
"""Where a DICOM file says how long its own group 0002 is, and where that length counts from (PS3.10 7.1)."""


def content_digest(content: bytes) -> str:
    """SHA-256 of an object without the file's own group 0002, which every sender writes anew."""
    length = int.from_bytes(content[META_LENGTH_AT:META_AT], "little")
    return hashlib.sha256(memoryview(content)[META_AT + length :]).hexdigest()


class ObjectStore:
    """A folder of objects; file names say nothing of their content.

    Args:
        folder: Made, for nobody but the owner, if it is absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path_of(self, digest: str) -> Path:
        """Where the object of this digest is, or would be."""
        return self._folder / digest[:2] / f"{digest}.dcm"

    def put(self, content: bytes, digest: str) -> Path:
        """Keep ``content``: it is on the disk, and its name with it, when this returns."""
        path = self.path_of(digest)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._folder)
        if not path.exists():
            write_atomically(path, content, mode=0o600)
        return path

    @contextmanager
    def draft(self, content: bytes) -> Iterator[Path]:
        """A file with ``content`` to look at before it is kept; gone when the block ends."""
        path = self._folder / f"{DRAFT}{uuid.uuid4().hex}"
        try:
            path.touch(mode=0o600)
            path.write_bytes(content)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Forget an object; nothing happens if it is not there."""
        self.path_of(digest).unlink(missing_ok=True)

    def sweep(self, known: Container[str]) -> int:
        """Remove what no row of the queue knows: left by a process that was killed before it committed."""
        removed = 0
        for path in self._files():
            if path.stem not in known:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def free_bytes(self) -> int:
        """Left on the disk."""
        return shutil.disk_usage(self._folder).free

    def _files(self) -> Iterator[Path]:
        for entry in self._folder.iterdir():
            if entry.is_dir():
                yield from entry.iterdir()
            elif entry.name.startswith(DRAFT):
                yield entry
