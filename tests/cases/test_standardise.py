"""Standardising can be undone, record by record, and never touches what was changed since."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.names import save_names
from consilium.cases.standardise import standardise, undo_standardise
from consilium.cases.validate import validate_dataset
from consilium.cli.standardise import standardise as verb
from consilium.errors import DatasetError
from tests.cases.drafts import draft


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    for number in (1, 2, 3):
        dataset.add(draft(number))
    save_names(dataset.folder, {"Bladder": "Vesica"}, [])
    return dataset


def records(dataset: Dataset) -> dict[str, bytes]:
    return {i: (dataset.case_folder(i) / "case.json").read_bytes() for i in dataset.case_ids}


def test_undo_brings_every_record_back_byte_for_byte(dataset: Dataset) -> None:
    before, structures = records(dataset), dataset.structures
    assert standardise(dataset).changed == dataset.case_ids
    assert "Vesica" in dataset.structures
    assert "Bladder" not in dataset.structures
    assert validate_dataset(dataset) == []
    assert undo_standardise(dataset).changed == dataset.case_ids
    assert records(dataset) == before
    assert dataset.structures == structures


def test_standardising_twice_changes_nothing_more(dataset: Dataset) -> None:
    standardise(dataset)
    after = records(dataset)
    assert standardise(dataset).changed == ()
    assert records(dataset) == after
    assert len(list((dataset.folder / "undo").iterdir())) == 1


def test_a_case_changed_since_is_left_alone(dataset: Dataset) -> None:
    standardise(dataset)
    changed = dataset.case(dataset.case_ids[0])
    dataset.update(replace(changed, findings=()))
    dataset.remove(dataset.case_ids[1])
    result = undo_standardise(dataset)
    assert len(result.changed) == 1
    assert changed.case_id in result.kept
    assert dataset.case(changed.case_id).findings == ()


def test_a_kill_in_between_can_be_undone(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = records(dataset)
    change = Dataset.change
    calls: list[str] = []

    def dying(self: Dataset, case_id: str, how: Callable[[Case], Case]) -> Case:
        calls.append(case_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return change(self, case_id, how)

    monkeypatch.setattr(Dataset, "change", dying)
    with pytest.raises(KeyboardInterrupt):
        standardise(dataset)
    monkeypatch.undo()
    assert records(dataset) != before
    assert len(undo_standardise(dataset).changed) == 1
    assert records(dataset) == before


def test_nothing_to_undo_and_damaged_records_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="none to undo"):
        undo_standardise(dataset)
    standardise(dataset)
    (file,) = (dataset.folder / "undo").iterdir()
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(DatasetError, match="format"):
        undo_standardise(dataset)


def test_the_verb_says_how_many(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    verb(dataset.folder)
    verb(dataset.folder, undo=True)
    text = capsys.readouterr().out
    assert "3 cases brought to the accepted names" in text
    assert "3 cases taken back" in text
