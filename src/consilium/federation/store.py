"""What a site remembers between its rounds: small named byte strings, in a folder that one process at a time
may use.
"""

from pathlib import Path
from typing import Protocol

from consilium.errors import FederationError
from consilium.federation.durable import FolderLock, remove_leftovers, replacing, sync_folder

FINAL = "final.safetensors"
"""The last model, with the site's own local parameters."""


class SiteStore(Protocol):
    """Named byte strings."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, *content: bytes | memoryview, durable: bool = True) -> None: ...
    def remove(self, name: str) -> None: ...
    def list_names(self) -> list[str]: ...


class FolderStore:
    """A folder that survives a kill; each write is there whole or not at all.

    Args:
        folder: Created when absent.

    Raises:
        FederationError: If another process uses the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FolderLock(folder, "site folder")
        remove_leftovers(folder)

    def read(self, name: str) -> bytes | None:
        """The content; None if there is none."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, *content: bytes | memoryview, durable: bool = True) -> None:
        """Replace the content, given in parts, as a whole; without ``durable`` a power cut (not a kill) may
        lose or tear it.

        Raises:
            FederationError: If the disk is full or the folder cannot be written.
        """
        try:
            with replacing(self._folder / name, sync=durable) as file:
                file.writelines(content)
        except OSError as fault:
            raise FederationError(
                f"site folder {self._folder.name}: {name} could not be written ({fault.strerror}). Free "
                "space there "
                "and join again."
            ) from fault

    def remove(self, name: str) -> None:
        """Remove it, if it is there."""
        (self._folder / name).unlink(missing_ok=True)
        sync_folder(self._folder)

    def list_names(self) -> list[str]:
        """All names, sorted."""
        return sorted(path.name for path in self._folder.iterdir() if path.is_file() and path.name != "lock")

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()


class MemoryStore:
    """The same without a folder: for simulated sites, which are not killed."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """The content; None if there is none."""
        return self._contents.get(name)

    def write(self, name: str, *content: bytes | memoryview, durable: bool = True) -> None:
        """Replace the content."""
        self._contents[name] = b"".join(content)

    def remove(self, name: str) -> None:
        """Remove it, if it is there."""
        self._contents.pop(name, None)

    def list_names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._contents)
