"""Writing that survives a power cut: temporary file, fsync, rename, fsync of the folder."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from consilium.errors import DatasetError


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put ``content`` at ``path`` so that a reader sees the old or the new file, never a part of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, record: Any, *, mode: int = 0o644) -> None:
    """`write_atomically` of readable JSON; floats keep their full precision."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode() + b"\n", mode=mode)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DatasetError: If it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path.name}: must exist; it is missing.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name}: must be JSON; it cannot be read as such.") from error


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
