"""Where the real test data lies; every function skips the test with a reason where it is absent."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def find_shared_data() -> Path | None:
    """The folder of real data: ``$CONSILIUM_SHARED_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("CONSILIUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def shared_data(name: str) -> Path:
    """The file or folder ``name`` of the real data, e.g. ``"openkbp/pt_101"``."""
    folder = find_shared_data()
    if folder is None or not (folder / name).exists():
        pytest.skip(f"real data absent: shared/data/{name}")
    return folder / name


@cache
def _unpack(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(folder / "unpack"), str(to)], check=True, capture_output=True)


def unpacked(name: str) -> Path:
    """An unpacked archive of the real data, e.g. ``"sts/STS_001"``, in a cache outside the repository."""
    archive = shared_data(f"{name}.tar.xz")
    to = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consilium-test-data"
    _unpack(archive.parent.parent, to)
    return to / name
