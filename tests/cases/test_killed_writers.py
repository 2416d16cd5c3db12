"""Writers that are killed, that meet, or that find no room: the dataset keeps whole cases only."""

import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consilium.cases import dataset as dataset_module
from consilium.cases.dataset import Added, create_dataset
from tests.cases.drafts import draft
from tests.geometry.grids import grid

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", ["at-every-event", "at-random", "two-at-once"])
def test_a_dataset_stands_writers_that_die_or_meet(what: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cases.killed_writers", what, str(tmp_path / "dataset")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may grow beyond 4 KiB: the system refuses the write, as a full disk does."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_system_that_refuses_to_write_leaves_nothing_behind(tmp_path: Path, small_disk: int) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    with pytest.raises(OSError):
        dataset.add(draft(target=grid((20, 40, 40), (3.0, 1.0, 1.0))))
    assert dataset.case_ids == ()
    assert list((dataset.folder / "cases").iterdir()) == []
    assert not list((dataset.folder / "private").rglob("case-*"))


@pytest.mark.parametrize("replacing", [False, True])
def test_a_disk_full_at_the_manifest_brings_the_old_case_back(
    tmp_path: Path, replacing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    if replacing:
        dataset.add(draft())
    before = dataset.case_ids
    write_json = dataset_module.write_json

    def full(path: Path, record: Any, **options: Any) -> None:
        if path.name == "dataset.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, record, **options)

    monkeypatch.setattr(dataset_module, "write_json", full)
    with pytest.raises(OSError) as caught:
        dataset.add(replace(draft(), source_sha256={"series": "f" * 64}, annotations=()), replace=True)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert dataset.case_ids == before
    assert [len(case.annotations) for case in dataset.cases()] == [3] * len(before)
    assert len(list((dataset.folder / "cases").iterdir())) == len(before)
    assert dataset.add(draft())[1] is (Added.UNCHANGED if replacing else Added.NEW)
