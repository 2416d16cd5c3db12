"""The verb import: whole folders in, again without change, refusals apart, nothing identifying outside."""

import errno
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from consilium.cases.case import State
from consilium.cases.dataset import open_dataset
from consilium.cases.validate import validate_dataset
from consilium.cli.console import run_verb
from consilium.cli.verbs import load_verb
from consilium.exporters.nifti import export_nifti
from consilium.exporters.nnunet import export_nnunet
from consilium.importers.sources import find_sources
from consilium.phantoms.dicom import SeriesIdentity, write_series
from consilium.types import no_progress
from tests.data import shared_data
from tests.geometry.grids import grid
from tests.importers.files import noise, write_noise


def run_import(*arguments: object) -> int:
    return run_verb(load_verb("import"), [str(a) for a in arguments])


def nifti_case(folder: Path, *, nan: bool = False, shift: float = 0.0) -> None:
    shape = (8, 7, 6)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    values = np.random.default_rng(3).integers(-1000, 1000, shape).astype(np.float32)
    if nan:
        values[0, 0, 0] = np.nan
    (folder / "segmentations").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "ct.nii.gz")
    mask = np.zeros(shape, np.uint8)
    empty = mask.copy()
    mask[2:5, 2:5, 1:4] = 1
    moved = affine.copy()
    moved[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(mask, moved), folder / "segmentations" / "Bladder.nii.gz")
    nibabel.save(nibabel.Nifti1Image(empty, affine), folder / "segmentations" / "Rectum.nii.gz")


def test_good_cases_come_in_and_bad_ones_are_listed(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "JaneDoe")
    nifti_case(tmp_path / "in" / "JohnDoe", nan=True)
    nifti_case(tmp_path / "in" / "JimDoe", shift=3.0)
    write_noise(tmp_path / "in" / "JackDoe", grid((4, 6, 5), (2.0, 1.0, 1.0)))
    assert run_import(tmp_path / "in", tmp_path / "out") == 1
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.case_ids) == 2
    text = (tmp_path / "out" / "import-report.json").read_text()
    reasons = [r["reason"] for r in json.loads(text)["refused"]]
    assert any("1 of 336 are NaN" in r for r in reasons)
    assert any("must lie on the image's grid" in r for r in reasons)
    assert "Doe" not in text
    assert str(tmp_path) not in text
    assert "JohnDoe" in (tmp_path / "out" / "private" / "import-sources.json").read_text()


def test_an_empty_mask_is_absent_and_a_missing_one_unknown(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    (case,) = open_dataset(tmp_path / "out").cases()
    states = [case.state(s) for s in ("Bladder", "Rectum", "Prostate")]
    assert states == [State.CONTOURED, State.ABSENT, State.UNKNOWN]
    assert case.image.dtype == "int16"


def test_a_second_import_changes_nothing_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_noise(tmp_path / "in", grid((4, 6, 5), (2.0, 1.0, 1.0)))
    assert run_import(tmp_path / "in", tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cases").rglob("*")}
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cases").rglob("*")} == before
    report = json.loads((tmp_path / "out" / "import-report.json").read_text())
    assert len(report["unchanged"]) == 1


@pytest.mark.parametrize(
    ("fault", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_full_disk_or_ctrl_c_leaves_whole_cases_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, fault: BaseException, code: int
) -> None:
    nifti_case(tmp_path / "in" / "a")
    nifti_case(tmp_path / "in" / "b")
    written = 0

    def fail_late(path: Path, volume: Any) -> None:
        nonlocal written
        written += 1
        if written > 3:
            path.write_bytes(b"half")
            raise fault
        original(path, volume)

    import consilium.cases.folder as module

    original = module.write_nifti
    monkeypatch.setattr(module, "write_nifti", fail_late)
    assert run_import(tmp_path / "in", tmp_path / "out") == code
    monkeypatch.undo()
    assert len(open_dataset(tmp_path / "out").case_ids) == 1
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.load_mask(case, "Bladder").sum() for case in dataset.cases()] == [27, 27]


def test_nifti_and_nnunet_exports_are_read_back_with_the_same_states(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    nifti_case(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "segmentations" / "Rectum.nii.gz").unlink()
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    cases = list(dataset.cases())
    for case in cases:
        export_nifti(dataset, case, tmp_path / "nifti")
    record = export_nnunet(dataset, cases, tmp_path / "nnunet")
    assert record["labels"]["ignore"] == 2
    for folder in ("nifti", "nnunet"):
        assert run_import(tmp_path / folder, tmp_path / f"again-{folder}") == 0
    again = open_dataset(tmp_path / "again-nifti")
    states = sorted((c.state("Bladder"), c.state("Rectum")) for c in again.cases())
    assert states == [(State.CONTOURED, State.ABSENT), (State.CONTOURED, State.UNKNOWN)]
    labels = [c.state("Bladder") for c in open_dataset(tmp_path / "again-nnunet").cases()]
    assert sorted(labels) == [State.CONTOURED, State.UNKNOWN]


def test_openkbp_is_partly_labelled_as_its_index_says() -> None:
    folder = shared_data("openkbp")
    index = json.loads((folder / "index.json").read_text())
    found = {s.location.name: s for s in find_sources(folder).sources}
    assert len(found) == 40
    for entry in index[:3]:
        draft = found[entry["case"]].read(no_progress)
        counts = {a.structure: int(a.mask().sum()) for a in draft.annotations if a.mask is not None}
        assert counts == entry["voxels"]


def test_totalsegmentators_own_label_table_names_its_codes(tmp_path: Path) -> None:
    sources = find_sources(shared_data("totalsegmentator")).sources
    draft = next(s for s in sources if s.name.startswith("NIfTI")).read(no_progress)
    masks = {a.structure: a.mask for a in draft.annotations if a.mask is not None}
    labelmap = np.asarray(nibabel.load(shared_data("totalsegmentator/example_seg.nii.gz")).dataobj)
    spleen = masks["spleen"]
    assert spleen is not None
    assert spleen().sum() == (labelmap == 1).sum() > 0


def test_the_folder_of_masks_may_be_written_in_capitals(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    (tmp_path / "in" / "a" / "segmentations").rename(tmp_path / "in" / "a" / "Masks")
    (source,) = find_sources(tmp_path / "in").sources
    assert [a.structure for a in source.read(no_progress).annotations] == ["Bladder", "Rectum"]


def test_a_labelmap_that_gets_its_names_later_is_taken_by_replacing(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    (tmp_path / "in" / "a" / "segmentations" / "Bladder.nii.gz").rename(tmp_path / "in" / "a" / "seg.nii.gz")
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    (case,) = open_dataset(tmp_path / "out").cases()
    assert [f.code for f in case.findings] == ["labelmap-without-names"]
    (tmp_path / "in" / "a" / "labels.json").write_text('{"1": "Bladder"}')
    assert run_import(tmp_path / "in", tmp_path / "out", "--replace") == 0
    (case,) = open_dataset(tmp_path / "out").cases()
    assert case.state("Bladder") is State.CONTOURED


def test_the_report_of_an_import_is_part_of_the_dataset_and_searched_for_identifiers(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert validate_dataset(dataset) == []
    report = tmp_path / "out" / "import-report.json"
    report.write_text(report.read_text().replace("{", '{"of": "Doe^Jane", ', 1))
    assert [(f.code, f.where) for f in validate_dataset(dataset)] == [("identifier", "import-report.json")]


@pytest.mark.parametrize("file", ["case.json", "image.nii.gz", "masks/clinical/Bladder-976394.nii.gz"])
def test_replacing_mends_a_damaged_case_whose_source_is_the_same(tmp_path: Path, file: str) -> None:
    nifti_case(tmp_path / "in" / "a")
    nifti_case(tmp_path / "in" / "b")
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    whole, damaged = dataset.case_ids
    place = dataset.case_folder(damaged) / file
    place.write_bytes(place.read_bytes()[:-20])
    before = (dataset.case_folder(whole) / "image.nii.gz").stat().st_mtime_ns
    assert run_import(tmp_path / "in", tmp_path / "out", "--replace") == 0
    assert validate_dataset(dataset) == []
    assert (dataset.case_folder(whole) / "image.nii.gz").stat().st_mtime_ns == before


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    nifti_case(tmp_path / "elsewhere" / "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (source,) = find_sources(tmp_path / "in").sources
    assert [a.structure for a in source.read(no_progress).annotations] == ["Bladder", "Rectum"]


def test_a_dataset_inside_its_source_is_refused(tmp_path: Path) -> None:
    """Run again, the import would take the dataset's own images as further patients."""
    nifti_case(tmp_path / "in" / "a")
    assert run_import(tmp_path / "in", tmp_path / "in" / "dataset") == 2
    assert not (tmp_path / "in" / "dataset").exists()


def test_hidden_files_beside_images_and_masks_are_passed_over(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    export_nnunet(dataset, list(dataset.cases()), tmp_path / "nnunet")
    for path in [*(tmp_path / "in").rglob("*.nii.gz"), *(tmp_path / "nnunet").rglob("*.nii.gz")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7 attributes of another file system")
    for folder in ("in", "nnunet"):
        found = find_sources(tmp_path / folder)
        assert found.refused == ()
        (source,) = found.sources
        assert "Bladder" in [a.structure for a in source.read(no_progress).annotations]


def test_sources_of_one_name_are_all_told_to_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consilium.importers.dicom_series.short_uid", lambda uid: "…0000")
    for label in ("one", "two"):
        image = noise(grid((4, 6, 5), (2.0, 1.0, 1.0)))
        write_series(tmp_path / "in" / label, image, SeriesIdentity(label=label))
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    sources = json.loads((tmp_path / "out" / "private" / "import-sources.json").read_text())
    (places,) = sources.values()
    assert sorted(Path(place).name for place in places) == ["one", "two"]


def test_a_name_that_several_codes_have_is_all_of_them(tmp_path: Path) -> None:
    nifti_case(tmp_path / "in" / "a")
    mask = tmp_path / "in" / "a" / "segmentations" / "Bladder.nii.gz"
    image = nibabel.load(mask)
    labels = np.asarray(image.dataobj) * 2
    labels[2] //= 2
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), tmp_path / "in" / "a" / "seg.nii.gz")
    mask.unlink()
    (tmp_path / "in" / "a" / "labels.json").write_text('{"1": "Bladder", "2": "Bladder"}')
    assert run_import(tmp_path / "in", tmp_path / "out") == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.load_mask(next(dataset.cases()), "Bladder").sum() == 27


def test_files_that_the_system_does_not_let_read_are_refused_and_the_others_come_in(tmp_path: Path) -> None:
    """`/proc/self/mem` can be opened; reading it fails, as on a bad disk."""
    nifti_case(tmp_path / "in" / "a")
    for name in ("b/ct.nii.gz", "c/slice.dcm"):
        (tmp_path / "in" / name).parent.mkdir()
        (tmp_path / "in" / name).symlink_to("/proc/self/mem")
    assert run_import(tmp_path / "in", tmp_path / "out") == 1
    assert len(open_dataset(tmp_path / "out").case_ids) == 1
    report = json.loads((tmp_path / "out" / "import-report.json").read_text())
    assert len([r for r in report["refused"] if "OSError" in r["reason"]]) == 2
