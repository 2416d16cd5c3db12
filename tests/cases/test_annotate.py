"""A contour that is drawn again: the old one or the new one is there, whole, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.cases.annotate import write_annotation
from consilium.cases.case import State
from consilium.cases.dataset import Added, Dataset, create_dataset
from consilium.cases.validate import validate_dataset
from consilium.errors import DatasetError
from consilium.geometry.volume import Volume
from tests.cases.drafts import draft

READER = "model-0123"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft(1))
    return dataset


def draw(dataset: Dataset, slices: int) -> None:
    case = next(dataset.cases())
    mask = np.zeros(case.image.grid.shape_zyx, dtype=bool)
    mask[:slices, 2:5, 2:5] = True
    write_annotation(dataset, case.case_id, "Liver", mask, reader=READER)


def drawn(dataset: Dataset) -> int:
    return int(dataset.load_mask(next(dataset.cases()), "Liver", READER).sum()) // 9


@pytest.mark.parametrize("slices", [5, 0])
def test_a_contour_drawn_again_leaves_nothing_of_the_one_before(dataset: Dataset, slices: int) -> None:
    draw(dataset, 3)
    draw(dataset, slices)
    assert drawn(dataset) == slices
    assert validate_dataset(dataset) == []


def test_a_stop_before_the_record_leaves_the_contour_of_before(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    draw(dataset, 3)
    monkeypatch.setattr(Dataset, "add_annotation", stop)
    with pytest.raises(KeyboardInterrupt):
        draw(dataset, 5)
    assert drawn(dataset) == 3
    assert {finding.code for finding in validate_dataset(dataset)} == {"orphan"}


def test_a_case_that_is_imported_again_keeps_its_corrections(dataset: Dataset) -> None:
    case_id = dataset.case_ids[0]
    mask = np.zeros(dataset.case(case_id).image.grid.shape_zyx, dtype=bool)
    mask[2:4, 2:5, 2:5] = True
    write_annotation(dataset, case_id, "Liver", mask, reader="correction-1")
    write_annotation(dataset, case_id, "Spleen", mask & False, reader="correction-1")
    draw(dataset, 3)
    again = replace(draft(1), source_sha256={"structures": "f" * 64})
    case, added = dataset.add(again, replace=True)
    assert added is Added.REPLACED
    assert dataset.case(case_id) == case
    np.testing.assert_array_equal(dataset.load_mask(case, "Liver", "correction-1"), mask)
    assert case.state("Spleen", "correction-1") is State.ABSENT
    assert case.annotation("Liver", READER) is None
    assert validate_dataset(dataset) == []


def test_corrections_are_not_laid_on_another_image(dataset: Dataset) -> None:
    case_id = dataset.case_ids[0]
    before = dataset.case(case_id)
    mask = np.ones(before.image.grid.shape_zyx, dtype=bool)
    corrected, annotation = write_annotation(dataset, case_id, "Liver", mask, reader="correction-1")
    image = draft(1).image
    other = replace(draft(1), image=Volume(image.array + 1, image.grid), source_sha256={"image": "f" * 64})
    with pytest.raises(DatasetError, match="its 1 corrections to stay"):
        dataset.add(other, replace=True)
    assert dataset.case(case_id) == corrected
    (dataset.case_folder(case_id) / str(annotation.file)).write_bytes(b"damaged")
    case, _ = dataset.add(other, replace=True)
    assert case.annotation("Liver", "correction-1") is None
    assert validate_dataset(dataset) == []
