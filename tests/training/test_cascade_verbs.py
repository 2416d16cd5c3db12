"""A cascade as a person makes and uses it: train --detect, Ctrl-C, --resume, pack, evaluate, contour."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from consilium.cases.dataset import Dataset
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.cli.contour import contour
from consilium.cli.contoured import model_reader, open_contoured
from consilium.cli.evaluate import evaluate
from consilium.cli.info import info
from consilium.cli.pack import pack
from consilium.cli.report import report
from consilium.cli.train import train
from consilium.errors import CheckpointError, ConfigurationError, DatasetError, RunError
from consilium.inference.cascade_file import load_cascade
from consilium.phantoms.dicom import SeriesIdentity, write_series
from consilium.training import cascade_run
from consilium.training.cascade_run import CascadeConfig, open_cascade_run, start_cascade_run
from consilium.training.cascade_training import DETECTOR_STATE, train_cascade
from consilium.training.config import Budget
from tests.training.balls import GRID, balls, dataset_of

STEPS = 120


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    """The balls are small and easy: smaller steps than the plan's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade_run, "DETECTOR_CROP", (24, 32, 32))
        patch.setattr(cascade_run, "DETECTOR_BATCH", 4)
        patch.setattr(cascade_run, "VOXELS_ACROSS", 7.0)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(dataset.folder, folder, structures="Nodule", steps=STEPS, detect=True) == 0
    return folder


def test_info_tells_what_a_cascade_is_and_report_where_its_results_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info(run, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["structure"], record["ready"]) == ("Nodule", True)
    assert record["reasons"] == list(open_cascade_run(run).reasons)
    info(run)
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(reason.split()) in said for reason in record["reasons"])
    with pytest.raises(ConfigurationError, match="consilium evaluate run DATASET"):
        report(run)


def stop_after(calls: int) -> Callable[[], bool]:
    left = [calls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return should_stop


def test_an_interrupted_cascade_goes_on_to_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    config, budget = CascadeConfig(structure="Nodule", ignored=("Non-nodule",)), Budget(steps=4)
    whole = start_cascade_run(dataset, tmp_path / "whole", config, budget)
    straight = train_cascade(dataset, whole)
    assert straight is not None
    start_cascade_run(dataset, tmp_path / "parts", config, budget)
    sittings = 0
    again = None
    while again is None:
        again = train_cascade(dataset, open_cascade_run(tmp_path / "parts"), should_stop=stop_after(1))
        sittings += 1
        assert sittings < 9
    assert sittings > 2
    assert again.digest == straight.digest


def test_a_state_of_other_settings_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    budget = Budget(steps=4)
    one = start_cascade_run(dataset, tmp_path / "one", CascadeConfig(structure="Nodule"), budget)
    two = start_cascade_run(dataset, tmp_path / "two", CascadeConfig(structure="Nodule", seed=1), budget)
    assert train_cascade(dataset, one, should_stop=stop_after(1)) is None
    shutil.copy(one.folder / DETECTOR_STATE, two.folder / DETECTOR_STATE)
    with pytest.raises(CheckpointError, match="same plan"):
        train_cascade(dataset, two)


def test_what_to_find_must_be_clear(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Nodule, Non-nodule\. Name one"):
        train(dataset.folder, tmp_path / "run", detect=True, steps=2)
    with pytest.raises(DatasetError, match=r"known size|two patients"):
        train(dataset.folder, tmp_path / "run", structures="Non-nodule", detect=True, steps=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="new or empty"):
        train(dataset.folder, tmp_path / "full", structures="Nodule", detect=True, steps=2)


@pytest.mark.slow
def test_the_run_finds_and_contours_what_it_learnt(
    dataset: Dataset, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(run, tmp_path / "balls.consilium")
    assert load_cascade(tmp_path / "balls.consilium").card["things_in_training"] == 2
    with pytest.raises(ConfigurationError, match="--resume"):
        train(dataset.folder, run, structures="Nodule", detect=True)
    volume, labels = balls(((22.0, 30.0, 24.0), 14.0))
    write_nifti(tmp_path / "ct.nii.gz", volume)
    contour([tmp_path / "balls.consilium", tmp_path / "ct.nii.gz", tmp_path / "out"])
    record = json.loads((tmp_path / "out" / "contours.json").read_text())
    assert len(record["structures"]) >= 1
    assert len(record["candidates"]) >= len(record["structures"])
    first = record["structures"][0]
    assert 0 < first["confidence"] <= first["detector_score"]
    assert np.allclose(first["centre_lps_mm"], GRID.affine.to_points((22.0, 30.0, 24.0)), atol=6)
    (file,) = (tmp_path / "out").glob("Nodule-*.nii.gz")
    written = read_nifti(file).array
    both = np.count_nonzero((written == 1) & (labels == 1))
    assert 2 * both / (np.count_nonzero(written == 1) + np.count_nonzero(labels)) > 0.7
    assert f"Nodule 1 ({first['confidence']:.2f})" in capsys.readouterr().out
    opened = open_contoured(tmp_path / "out")
    case = opened.case(opened.case_ids[0])
    drawn = opened.load_mask(case, first["structure"], model_reader(record["models"]))
    assert np.array_equal(drawn, written == 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_every_instance_is_a_numbered_roi_with_its_confidence(run: Path, tmp_path: Path, kind: str) -> None:
    volume, _ = balls(((22.0, 30.0, 24.0), 14.0))
    write_series(tmp_path / "ct", volume, SeriesIdentity(label="balls"))
    contour([run, tmp_path / "ct", tmp_path / "out"], output_format=kind)
    record = json.loads((tmp_path / "out" / "contours.json").read_text())
    names = [f"Nodule {i['number']} ({i['confidence']:.2f})" for i in record["structures"]]
    assert names
    (path,) = (tmp_path / "out").glob("*.dcm")
    dataset = pydicom.dcmread(path)
    if kind == "rtstruct":
        found = [(r.ROINumber, r.ROIName) for r in dataset.StructureSetROISequence]
        assert all(r.ContourSequence for r in dataset.ROIContourSequence)
    else:
        found = [(s.SegmentNumber, s.SegmentLabel) for s in dataset.SegmentSequence if s.SegmentNumber]
    assert found == list(enumerate(names, start=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rtstruct", "seg", "nifti"])
def test_nothing_found_is_written_and_said(
    run: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, _ = balls()
    write_series(tmp_path / "ct", volume, SeriesIdentity(label="balls"))
    contour([run, tmp_path / "ct", tmp_path / "out"], output_format=kind)
    assert "none found" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "contours.json").read_text())
    assert record["structures"] == [{"structure": "Nodule", "number": 0, "voxels": 0, "volume_cm3": 0.0}]
    assert "none found" in record["said"]
    if kind == "nifti":
        (file,) = (tmp_path / "out").glob("Nodule-*.nii.gz")
        assert not read_nifti(file).array.any()
    elif kind == "rtstruct":
        written = pydicom.dcmread(tmp_path / "out" / "contours.dcm")
        assert [r.ROIName for r in written.StructureSetROISequence] == ["Nodule"]
        assert not written.ROIContourSequence[0].get("ContourSequence")
    else:
        written = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
        assert [s.SegmentLabel for s in written.SegmentSequence if s.SegmentNumber] == ["Nodule"]


@pytest.mark.slow
def test_evaluate_writes_the_froc_page(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    evaluate(run, dataset.folder, tmp_path, split="all")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["scans"] == 3
    assert record["things"] == 3
    assert record["cpm"]["estimate"] > 0.5
    assert record["settings"]["ignored"] == ["Non-nodule"]
    assert sum(row["things"] for row in record["sizes"]) == 3
    assert len(record["cases"]) == 3
    page = (tmp_path / "evaluation.html").read_text()
    for text in ("FROC", "By size", "3 scans prove nothing", "<svg"):
        assert text in page
    evaluate(run, dataset.folder, tmp_path / "validation")
    assert json.loads((tmp_path / "validation" / "evaluation.json").read_text())["scans"] == 1


@pytest.mark.slow
def test_contouring_a_dataset_adds_the_cascade_as_a_reader(run: Path, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data")
    contour([run, dataset.folder])
    reader = model_reader([load_cascade(run / "cascade.consilium").digest])
    for case in dataset.cases():
        annotation = case.annotation("Nodule", reader)
        assert annotation is not None
        assert annotation.voxels > 0
