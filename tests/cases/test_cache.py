"""The cache gives back what was built, whatever happens to its files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.cache import cache_key, cached_array
from consilium.errors import DatasetError
from consilium.types import Array

KEY = cache_key("a" * 64, spacing_zyx_mm=[3.0, 1.0, 1.0])
SHAPE = (70, 65, 90)


def image(seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1000, 3000, SHAPE, dtype=np.int16)


class Builder:
    """Counts how often it is asked."""

    def __init__(self, array: Array) -> None:
        self.array, self.calls = array, 0

    def __call__(self) -> Array:
        self.calls += 1
        return self.array


@pytest.mark.parametrize(
    "array",
    [
        image(),
        image() > 500,
        image().astype(np.float32) / 7,
        np.stack([image(1), image(2)]),
        image()[:5, :3, :1],
        image().transpose(2, 1, 0),
    ],
    ids=["int16", "bool", "float32", "channels", "tiny", "strided"],
)
def test_the_second_reading_equals_what_was_built(tmp_path: Path, array: Array) -> None:
    build = Builder(array)
    cached_array(tmp_path, KEY, build)
    reader = cached_array(tmp_path, KEY, build)
    assert build.calls == 1
    assert reader.shape == array.shape
    assert reader.dtype == array.dtype
    assert np.array_equal(reader[:], array)


def test_a_crop_equals_the_crop_of_the_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    array = image()
    reader = cached_array(tmp_path, KEY, lambda: array)
    for _ in range(20):
        start = rng.integers(0, np.asarray(SHAPE) - 1)
        stop = rng.integers(start + 1, np.asarray(SHAPE) + 1)
        crop = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        assert np.array_equal(reader[crop], array[crop])


def test_other_content_or_preprocessing_is_another_key() -> None:
    keys = {
        KEY,
        cache_key("b" * 64, spacing_zyx_mm=[3.0, 1.0, 1.0]),
        cache_key("a" * 64, spacing_zyx_mm=[3.0, 1.0, 1.1]),
        cache_key("a" * 64),
    }
    assert len(keys) == 4
    assert cache_key("a" * 64, one=1, two=2) == cache_key("a" * 64, two=2, one=1)


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.b2nd")
    return path


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "grown"])
def test_a_damaged_file_is_built_anew(tmp_path: Path, damage: str) -> None:
    cached_array(tmp_path, KEY, image)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif damage == "emptied":
        content = bytearray()
    else:
        content += b"\0"
    path.write_bytes(content)
    build = Builder(image())
    assert np.array_equal(cached_array(tmp_path, KEY, build)[:], image())
    assert build.calls == 1
    assert only_file(tmp_path).stat().st_size > 1000


def test_the_cache_may_be_deleted_while_it_is_read(tmp_path: Path) -> None:
    reader = cached_array(tmp_path / "cache", KEY, image)
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(reader[:], image())
    build = Builder(image())
    assert np.array_equal(cached_array(tmp_path / "cache", KEY, build)[3:9], image()[3:9])
    assert build.calls == 1


def test_a_cache_that_is_deleted_at_every_build_is_reported(tmp_path: Path) -> None:
    def sabotage() -> Array:
        shutil.rmtree(tmp_path / "cache")
        return image()

    with pytest.raises(DatasetError, match="vanished 3 times"):
        cached_array(tmp_path / "cache", KEY, sabotage)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Array:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_array(tmp_path, KEY, fail)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]
    assert np.array_equal(cached_array(tmp_path, KEY, image)[:], image())


def test_a_key_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="letters and digits"):
        cached_array(tmp_path / "cache", "../../etc", image)


PROCESS = """
import json, sys, time
from pathlib import Path
import numpy as np
from consilium.cases.cache import cache_key, cached_array
built = []
def build(seed):
    built.append(seed)
    time.sleep(0.05)
    return np.random.default_rng(seed).integers(0, 9, (40, 40, 40), dtype=np.int16)
sums = [int(cached_array(Path(sys.argv[1]), cache_key(str(seed)), lambda: build(seed))[5:30].sum())
        for seed in range(6)]
print(json.dumps([built, sums]))
"""


def test_several_processes_build_each_array_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert sorted(seed for built, _ in outputs for seed in built) == [0, 1, 2, 3, 4, 5]
    assert outputs[0][1] == outputs[1][1] == outputs[2][1]
