"""Accepted names: applied to what is there and to come, nothing renamed silently, nothing merged."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from sys import modules

import numpy as np
import pytest

from consilium.cases.annotate import write_annotation
from consilium.cases.case import State
from consilium.cases.dataset import Added, Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft
from consilium.cases.names import ProposedName, apply_names, load_names, save_names
from consilium.cases.standardise import standardise
from consilium.cases.validate import validate_dataset
from consilium.cli.names import names
from consilium.errors import DatasetError
from tests.cases.drafts import draft


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft(1))
    return dataset


def test_accepted_names_are_applied_to_what_is_there_and_to_what_comes(dataset: Dataset) -> None:
    before = dataset.load_mask(next(dataset.cases()), "Bladder")
    save_names(dataset.folder, {"Bladder": "Vesica", "Prostate": "Prostate"}, [])
    assert apply_names(dataset) == {"Bladder": 1}
    dataset.add(draft(2))
    assert dataset.structures == ("Prostate", "Vesica")
    for case in dataset.cases():
        assert case.state("Vesica") is State.CONTOURED
        assert [f.code for f in case.findings] == ["renamed"]
        assert "'Bladder'" in case.findings[0].message
    assert (dataset.load_mask(dataset.case(dataset.case_ids[0]), "Vesica").sum()) == before.sum()
    assert validate_dataset(dataset) == []
    assert apply_names(dataset) == {}
    assert dataset.add(draft(1))[1] is Added.UNCHANGED


def test_two_structures_of_a_reader_never_become_one(dataset: Dataset) -> None:
    twice = AnnotationDraft(structure="Blase", reader="clinical", state=State.ABSENT)
    source = draft(2)
    dataset.add(replace(source, annotations=(*source.annotations, twice)))
    save_names(dataset.folder, {"Blase": "Bladder"}, [])
    assert apply_names(dataset) == {}
    case = next(case for case in dataset.cases() if "Blase" in case.structures)
    assert [f.code for f in case.findings] == ["name-taken"]


def test_names_of_any_letters_are_read_back_and_proposals_rename_nothing(dataset: Dataset) -> None:
    accepted = {'say "Bläse"\\': "Bladder", "プロ": "Prostate"}
    save_names(dataset.folder, accepted, [ProposedName(original="x", name="y", note="0.5")])
    assert load_names(dataset.folder) == accepted
    assert "[proposed]" in (dataset.folder / "names.toml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "[accepted",
        "accepted = 3",
        "[accepted]\nx = 1",
        '[accepted]\nx = " y"',
        '[accepted]\na = "b"\nb = "a"',
    ],
)
def test_a_damaged_file_is_refused_before_anything_is_renamed(dataset: Dataset, text: str) -> None:
    (dataset.folder / "names.toml").write_text(text)
    with pytest.raises(DatasetError):
        load_names(dataset.folder)


def test_the_verb_proposes_accepts_and_applies(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    absent = AnnotationDraft(structure="Parotis li", reader="clinical", state=State.ABSENT)
    dataset.add(replace(draft(3), annotations=(absent,)))
    names(dataset.folder)
    assert load_names(dataset.folder) == {}
    assert '"Parotis li" = "Parotid_L"' in (dataset.folder / "names.toml").read_text()
    assert "Parotis li" in dataset.structures
    names(dataset.folder, accept=0.9, apply=True)
    assert "Parotid_L" in dataset.structures
    assert "Parotis li → Parotid_L in 1 cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("decided", "then"),
    [({"Bladder": "Blase"}, {"bladder": "Blase"}), ({"Blase": "bladder"}, {})],
    ids=["a standard name replaced", "a name chosen"],
)
def test_accepting_proposals_keeps_to_what_a_person_decided(
    dataset: Dataset, decided: dict[str, str], then: dict[str, str]
) -> None:
    absent = AnnotationDraft(structure="bladder", reader="clinical", state=State.ABSENT)
    dataset.add(replace(draft(3), annotations=(absent,)))
    save_names(dataset.folder, decided, [])
    names(dataset.folder, accept=0.9)
    accepted = load_names(dataset.folder)
    assert {old: new for old, new in accepted.items() if old != new} == decided | then


@pytest.mark.parametrize("rename", [apply_names, standardise])
def test_a_contour_that_is_drawn_while_names_are_applied_is_kept(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, rename: Callable[[Dataset], object]
) -> None:
    """Another process draws it after the case was looked at and before its record is written."""
    save_names(dataset.folder, {"Bladder": "Vesica"}, [])
    (case,) = dataset.cases()
    everywhere = np.ones(case.image.grid.shape_zyx, dtype=bool)
    lock = modules["consilium.cases.dataset"].dataset_lock

    def drawn_first(folder: Path) -> AbstractContextManager[None]:
        monkeypatch.undo()
        write_annotation(dataset, case.case_id, "Liver", everywhere, reader="reader-9")
        return lock(folder)

    monkeypatch.setattr("consilium.cases.dataset.dataset_lock", drawn_first)
    rename(dataset)
    (after,) = dataset.cases()
    assert {"Liver", "Vesica"} <= set(after.structures)
