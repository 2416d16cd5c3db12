"""The dataset folder: what is written is read back, interruptions lose nothing, identifiers stay private."""

import gzip
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from consilium.cases.case import State, case_to_json
from consilium.cases.dataset import Added, Dataset, create_dataset, file_name_of, open_dataset
from consilium.cases.draft import AnnotationDraft
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.errors import DatasetError
from consilium.geometry.volume import Volume
from consilium.types import FloatArray
from tests.cases.drafts import draft
from tests.geometry.grids import grid, orientations

ORIENTATIONS = list(orientations())


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return create_dataset(tmp_path / "dataset")


def test_an_added_case_is_read_back_exactly(dataset: Dataset) -> None:
    source = draft(target=grid((12, 20, 18), (3.0, 0.9765625123, 1.5), ORIENTATIONS[-1][1]))
    case, added = dataset.add(source)
    assert added is Added.NEW
    again = open_dataset(dataset.folder).case(case.case_id)
    assert again == case
    assert again.image.grid == source.image.grid
    image = dataset.load_image(again)
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array, source.image.array)
    mask = source.annotations[0].mask
    assert mask is not None
    assert np.array_equal(dataset.load_mask(again, "Bladder"), mask())
    assert again.annotation("Bladder", "clinical").voxels == int(mask().sum())  # type: ignore[union-attr]


def test_the_three_states_are_kept_apart(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    assert case.state("Bladder") is State.CONTOURED
    assert case.state("Prostate") is State.ABSENT
    assert case.state("Rectum") is State.UNKNOWN
    assert not dataset.load_mask(case, "Prostate").any()
    with pytest.raises(DatasetError, match="unknown"):
        dataset.load_mask(case, "Rectum")


def test_readers_stand_side_by_side(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    assert case.readers("Bladder") == ("clinical", "reader-2")
    first, second = (dataset.load_mask(case, "Bladder", reader) for reader in case.readers("Bladder"))
    assert not np.array_equal(first, second)


def test_adding_the_same_source_again_changes_nothing(dataset: Dataset) -> None:
    dataset.add(draft())
    before = {p: p.stat().st_mtime_ns for p in dataset.folder.rglob("*") if p.is_file()}
    assert dataset.add(draft())[1] is Added.UNCHANGED
    assert {p: p.stat().st_mtime_ns for p in dataset.folder.rglob("*") if p.is_file()} == before


def test_a_source_of_other_content_is_refused_until_replacing_is_asked_for(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    changed = replace(draft(), source_sha256={"series": "f" * 64}, annotations=())
    with pytest.raises(DatasetError, match="--replace"):
        dataset.add(changed)
    assert dataset.case(case.case_id) == case
    assert dataset.add(changed, replace=True)[1] is Added.REPLACED
    assert dataset.case(case.case_id).annotations == ()


def test_an_interrupted_add_leaves_the_dataset_as_it_was(dataset: Dataset) -> None:
    dataset.add(draft(1))

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    broken = replace(
        draft(2), annotations=(AnnotationDraft(structure="Bladder", reader="clinical", mask=interrupt),)
    )
    with pytest.raises(KeyboardInterrupt):
        dataset.add(broken)
    assert len(dataset.case_ids) == 1
    assert len(list((dataset.folder / "cases").iterdir())) == 1
    assert dataset.add(draft(2))[1] is Added.NEW


def test_a_folder_left_by_a_kill_before_the_manifest_is_taken_over(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    manifest = json.loads((dataset.folder / "dataset.json").read_text())
    manifest["cases"] = {}
    (dataset.folder / "dataset.json").write_text(json.dumps(manifest))
    assert dataset.add(draft())[1] is Added.NEW
    assert dataset.case(case.case_id) == case


def test_no_identifier_stands_outside_the_private_part(dataset: Dataset) -> None:
    dataset.add(draft(7))
    for path in dataset.folder.rglob("*"):
        if path.is_dir() or path.is_relative_to(dataset.folder / "private"):
            continue
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for identifier in (b"Doe", b"Jane", b"1.2.3."):
            assert identifier not in content, path
            assert identifier.decode() not in str(path.relative_to(dataset.folder))
    assert dataset.private_part().is_closed_to_others()
    record = dataset.private_part().read_record(dataset.case_ids[0])
    assert record["series_instance_uid"] == "1.2.3.7"


def test_pseudonyms_depend_on_the_key_and_join_a_patients_cases(tmp_path: Path) -> None:
    one, two = create_dataset(tmp_path / "one"), create_dataset(tmp_path / "two")
    first, second = one.add(draft(1, patient=5))[0], one.add(draft(2, patient=5))[0]
    assert first.patient_id == second.patient_id
    assert first.case_id != second.case_id
    assert two.add(draft(1, patient=5))[0].case_id != first.case_id


def test_a_changed_record_is_noticed(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    path = dataset.case_folder(case.case_id) / "case.json"
    path.write_text(path.read_text().replace('"contoured"', '"absent"', 1))
    with pytest.raises(DatasetError, match="digest"):
        dataset.case(case.case_id)


def test_a_record_that_leads_out_of_its_case_is_refused(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    bent = replace(case, image=replace(case.image, file="../../private/key"))
    with pytest.raises(DatasetError, match="leads out"):
        dataset.load_image(bent)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_of_the_format_is_refused(dataset: Dataset, version: object) -> None:
    path = dataset.folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    with pytest.raises(DatasetError, match="standardise"):
        open_dataset(dataset.folder)


def test_a_folder_with_other_files_is_not_made_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DatasetError, match="other files"):
        create_dataset(tmp_path)


def test_file_names_are_safe_and_one_to_one() -> None:
    names = ["Bladder", "bladder", "BLADDER", "Femur/L", "Femur\\L", "../../etc", "Femur L", "プロ", "con"]
    files = [file_name_of(name) for name in names]
    assert len({f.lower() for f in files}) == len(names)
    assert not any(set(f) & set("/\\. :") for f in files)


@pytest.mark.parametrize(("name", "axes"), ORIENTATIONS, ids=[n for n, _ in ORIENTATIONS])
def test_nifti_places_voxels_as_an_independent_reader_does(
    tmp_path: Path, name: str, axes: FloatArray
) -> None:
    target = grid((3, 4, 5), (3.0, 0.7, 1.1), axes)
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_nifti(tmp_path / "image.nii.gz", Volume(array, target))
    image = nibabel.load(tmp_path / "image.nii.gz")
    x, y, z = target.affine.to_points((2, 1, 3))
    ras = image.affine @ (3, 1, 2, 1)
    assert np.allclose(ras[:3], (-x, -y, z), atol=1e-4)
    assert image.get_fdata()[3, 1, 2] == array[2, 1, 3]
    back = read_nifti(tmp_path / "image.nii.gz")
    assert np.array_equal(back.array, array)
    assert back.array.dtype == array.dtype
    assert back.grid.is_same_as(target, 1e-4)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), grid((3, 4, 5), (1.0, 1.0, 1.0)))
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_damaged_case_is_mended_by_replacing_it(dataset: Dataset) -> None:
    case, _ = dataset.add(draft())
    (dataset.case_folder(case.case_id) / "case.json").write_text("{")
    assert dataset.add(draft(), replace=True)[1] is Added.REPLACED
    assert dataset.case(case.case_id) == case


def test_structures_follow_what_the_cases_say(dataset: Dataset) -> None:
    dataset.add(draft(1))
    case, _ = dataset.add(
        replace(draft(2), annotations=(AnnotationDraft(structure="Rectum", reader="a", state=State.ABSENT),))
    )
    assert dataset.structures == ("Bladder", "Prostate", "Rectum")
    dataset.update(replace(case, annotations=()))
    assert dataset.structures == ("Bladder", "Prostate")
    dataset.remove(dataset.case_ids[0])
    dataset.remove(dataset.case_ids[0])
    assert dataset.structures == ()


def test_five_thousand_cases_are_listed_and_read_in_seconds(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, _ = dataset.add(draft())
    record = case_to_json(case)
    manifest = json.loads((dataset.folder / "dataset.json").read_text())
    for number in range(5000):
        record["case_id"] = f"case-{number:016x}"
        text = json.dumps(record).encode()
        (dataset.folder / "cases" / record["case_id"]).mkdir()
        (dataset.folder / "cases" / record["case_id"] / "case.json").write_bytes(text)
        manifest["cases"][record["case_id"]] = hashlib.sha256(text).hexdigest()
    (dataset.folder / "dataset.json").write_text(json.dumps(manifest))
    parsed = []
    monkeypatch.setattr(
        "consilium.cases.dataset.read_json", lambda path: parsed.append(path) or json.loads(path.read_text())
    )
    before = time.process_time()
    assert sum(len(found.annotations) for found in dataset.cases()) == 3 * 5001
    assert time.process_time() - before < 8
    assert len(parsed) == 1
