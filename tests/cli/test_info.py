"""`consilium info` and `consilium validate` on a dataset."""

import json
from pathlib import Path

import pytest

from consilium.cases.dataset import Dataset, create_dataset
from consilium.cli.console import run_verb
from consilium.cli.verbs import build_command
from tests.cases.drafts import draft


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft(1))
    dataset.add(draft(2, patient=1))
    return dataset


def run(*arguments: object) -> int:
    return run_verb(build_command(), [str(argument) for argument in arguments])


def test_info_as_json_gives_every_case_structure_and_reader(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", dataset.folder, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["patients"] == 1
    assert [case["case_id"] for case in record["cases"]] == list(dataset.case_ids)
    for shown, case in zip(record["cases"], dataset.cases(), strict=True):
        assert shown["shape_zyx"] == list(case.image.grid.shape_zyx)
        assert [(a["structure"], a["reader"], a["state"], a["voxels"]) for a in shown["annotations"]] == [
            (a.structure, a.reader, str(a.state), a.voxels) for a in case.annotations
        ]


def test_info_prints_tables(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", dataset.folder) == 0
    text = capsys.readouterr().out
    assert "2 cases of 1 patients" in text
    assert "12×20×18" in text
    assert "absent" in text


def test_info_of_another_folder_is_misuse(tmp_path: Path) -> None:
    assert run("info", tmp_path) == 2


def test_validate_ends_with_the_state_of_the_dataset(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("validate", dataset.folder) == 0
    (dataset.folder / "private" / "key").chmod(0o644)
    assert run("validate", dataset.folder, "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    assert finding["code"] == "private-open"
