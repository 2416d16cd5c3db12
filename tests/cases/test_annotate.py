"""A contour that is drawn again: the old one or the new one is there, whole, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.cases.annotate import write_annotation
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.validate import validate_dataset
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
