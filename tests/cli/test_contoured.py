"""What a model contoured becomes a case that a person can decide about, on the image that it was drawn on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.case import State
from consilium.cases.dataset import create_dataset
from consilium.cases.nifti import write_nifti
from consilium.cli.console import run_verb
from consilium.cli.contoured import SOURCE_NOTE, open_contoured
from consilium.cli.review import with_cases
from consilium.cli.verbs import build_command
from consilium.errors import DataError
from consilium.geometry.volume import Volume
from consilium.inference.contour import contour_volume
from consilium.inference.model import load_model, save_model
from consilium.phantoms.dicom import SeriesIdentity, write_series
from consilium.phantoms.pelvis import HOSPITALS, build_cohort
from consilium.review.places import Kind, find_places
from consilium.types import Mask
from tests.cases.drafts import draft
from tests.inference.models import small_model

IMAGE = build_cohort(HOSPITALS[1], 1, seed=5)[0].image


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    model = small_model()
    save_model(tmp_path / "m.consilium", model.description, model.network.state_dict())
    return tmp_path / "m.consilium"


def expected_masks(model_file: Path) -> dict[str, Mask]:
    return {name: mask for name, mask, _ in contour_volume(load_model(model_file), IMAGE)}


def run(*words: object) -> int:
    return run_verb(build_command(), [str(word) for word in words])


@pytest.mark.parametrize("output_format", ["rtstruct", "seg", "nifti"])
def test_contours_of_a_series_are_reviewed_on_their_image(
    tmp_path: Path, model_file: Path, output_format: str
) -> None:
    write_series(tmp_path / "ct", IMAGE, SeriesIdentity(label="P1"))
    out = tmp_path / "out"
    assert (
        run("contour", model_file, tmp_path / "ct", out, "--engine", "torch", "--format", output_format) == 0
    )
    assert (out / SOURCE_NOTE).stat().st_mode & 0o077 == 0, "its path may name a patient"
    (place,) = (with_cases(p) for p in find_places(out) if p.kind is Kind.CONTOURED)
    dataset = place.dataset
    assert dataset is not None, place.problem
    (case,) = dataset.cases()
    reader = f"model-{load_model(model_file).digest[:8]}"
    masks = expected_masks(model_file)
    assert any(mask.any() for mask in masks.values())
    for name, mask in masks.items():
        assert np.array_equal(dataset.load_mask(case, name, reader), mask), name
        annotation = case.annotation(name, reader)
        assert annotation is not None
        assert (annotation.doubt is not None) == bool(mask.any())
    assert [c.case_id for c in open_contoured(out).cases()] == [case.case_id], (
        "the second opening adds nothing"
    )


def test_contours_of_an_earlier_call_in_another_format_are_not_taken_for_these(
    tmp_path: Path, model_file: Path
) -> None:
    write_series(tmp_path / "ct", IMAGE, SeriesIdentity(label="P1"))
    first, second = load_model(model_file), tmp_path / "second.consilium"
    weights = {name: -value for name, value in first.network.state_dict().items()}
    save_model(second, first.description, weights)
    out = tmp_path / "out"
    for file, form in ((model_file, "rtstruct"), (second, "nifti")):
        assert run("contour", file, tmp_path / "ct", out, "--engine", "torch", "--format", form) == 0
    dataset = open_contoured(out)
    (case,) = dataset.cases()
    reader = f"model-{load_model(second).digest[:8]}"
    expected = expected_masks(second)
    assert any((mask != expected[name]).any() for name, mask in expected_masks(model_file).items())
    for name, mask in expected.items():
        assert np.array_equal(dataset.load_mask(case, name, reader), mask), name


def test_without_the_image_the_page_says_what_to_do(tmp_path: Path, model_file: Path) -> None:
    write_nifti(tmp_path / "ct.nii.gz", IMAGE)
    out = tmp_path / "out"
    assert run("contour", model_file, tmp_path / "ct.nii.gz", out) == 0
    (tmp_path / "ct.nii.gz").unlink()
    (place,) = map(with_cases, find_places(out))
    assert place.dataset is None
    assert "is not there any more" in place.problem
    shutil.rmtree(out / "private")
    with pytest.raises(DataError, match="does not say on which image"):
        open_contoured(out)


def test_a_dataset_is_contoured_and_goes_on_where_it_stopped(tmp_path: Path, model_file: Path) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    for number in (1, 2):
        dataset.add(draft(number))
    assert run("contour", model_file, dataset.folder) == 0
    reader = f"model-{load_model(model_file).digest[:8]}"
    for case in dataset.cases():
        masks = {n: m for n, m, _ in contour_volume(load_model(model_file), dataset.load_image(case))}
        for name, mask in masks.items():
            assert case.state(name, reader) is (State.CONTOURED if mask.any() else State.ABSENT)
            assert np.array_equal(dataset.load_mask(case, name, reader), mask)
        assert case.readers("Bladder") == ("clinical", "reader-2")
    before = {c.case_id: (dataset.case_folder(c.case_id) / "case.json").read_bytes() for c in dataset.cases()}
    fresh, _ = dataset.add(draft(3))
    assert run("contour", model_file, dataset.folder) == 0
    for case_id, record in before.items():
        assert (dataset.case_folder(case_id) / "case.json").read_bytes() == record
    assert dataset.case(fresh.case_id).annotation("Bladder", reader) is not None
    assert run("validate", dataset.folder) == 0


@pytest.mark.parametrize("option", [("--doubt",), ("--format", "nifti"), ("--engine", "abacus")])
def test_an_option_that_a_dataset_has_no_use_for_is_refused(
    tmp_path: Path, model_file: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    case, _ = dataset.add(draft(1))
    assert run("contour", *option, model_file, dataset.folder) != 0
    assert option[0] in capsys.readouterr().err
    assert dataset.case(case.case_id) == case


def test_a_volume_on_another_grid_keeps_its_place(tmp_path: Path, model_file: Path) -> None:
    turned = Volume(np.ascontiguousarray(IMAGE.array[::-1]), IMAGE.grid)
    write_nifti(tmp_path / "ct.nii.gz", turned)
    assert run("contour", model_file, tmp_path / "ct.nii.gz", tmp_path / "out") == 0
    dataset = open_contoured(tmp_path / "out")
    (case,) = dataset.cases()
    assert np.array_equal(dataset.load_image(case).array, turned.array)
