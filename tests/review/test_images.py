"""Slices and masks as the page asks for them."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.cases.dataset import Dataset, create_dataset
from consilium.errors import DataError
from consilium.geometry.volume import Grid, Volume
from consilium.review import images
from consilium.review.images import KEPT_SLABS, Images
from consilium.review.thumbnails import thumbnail_png
from tests.cases.drafts import draft


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft())
    return dataset


def test_the_first_slice_does_not_wait_for_the_cache(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressing, release = threading.Event(), threading.Event()

    def slow_cache(folder: Path, key: str, build: Any) -> Any:
        array = build()
        compressing.set()
        assert release.wait(20)
        return array

    monkeypatch.setattr(images, "cached_array", slow_cache)
    case = dataset.case(dataset.case_ids[0])
    shown = Images(dataset)
    content, height, width = shown.slice_bytes(case, "axial", 1)
    assert compressing.is_set()
    assert not release.is_set()
    release.set()
    expected = dataset.load_image(case).to_canonical()[0].array[1]
    assert np.array_equal(np.frombuffer(content, "<i2").reshape(height, width), np.rint(expected))


def test_the_same_voxels_on_another_grid_are_shown_where_they_lie_now(dataset: Dataset) -> None:
    shown, before = Images(dataset), draft()
    shown.slice_bytes(dataset.case(dataset.case_ids[0]), "axial", 1)
    thumbnail = thumbnail_png(dataset, shown, dataset.case(dataset.case_ids[0]))
    turned = Grid(before.image.grid.shape_zyx, before.image.grid.affine.scaled((1, 1, -1)))
    image = Volume(before.image.array, turned)
    dataset.add(replace(before, image=image, source_sha256={"series": "f" * 64}), replace=True)
    case = dataset.case(dataset.case_ids[0])
    content, height, width = shown.slice_bytes(case, "axial", 1)
    expected = dataset.load_image(case).to_canonical()[0].array[1]
    assert np.array_equal(np.frombuffer(content, "<i2").reshape(height, width), expected)
    assert thumbnail_png(dataset, shown, case) != thumbnail


def test_what_the_server_keeps_does_not_grow(dataset: Dataset) -> None:
    case = dataset.case(dataset.case_ids[0])
    shown = Images(dataset)
    for number in range(KEPT_SLABS + 4):
        shown._slabs[("other", 0, number)] = np.zeros(1)
    shown.slice_bytes(case, "axial", 0)
    assert len(shown._slabs) <= KEPT_SLABS
    assert not any(slab.base is not None and slab.base.size > slab.size for slab in shown._slabs.values())


@pytest.mark.parametrize(("plane", "index"), [("oblique", 0), ("axial", -1), ("axial", 10_000)])
def test_a_slice_that_is_not_there_is_refused(dataset: Dataset, plane: str, index: int) -> None:
    with pytest.raises(DataError):
        Images(dataset).slice_bytes(dataset.case(dataset.case_ids[0]), plane, index)
