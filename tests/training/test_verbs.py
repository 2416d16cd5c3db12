"""The verbs plan, train, pack, evaluate and contour on a small dataset, as a person would type them."""

import json
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.dataset import Dataset
from consilium.cases.nifti import read_nifti, write_nifti
from consilium.cli.contour import contour
from consilium.cli.evaluate import evaluate
from consilium.cli.pack import pack
from consilium.cli.plan import plan
from consilium.cli.train import read_settings, train
from consilium.errors import ConfigurationError
from consilium.inference.model import read_model_file
from consilium.metrics.overlap import dice
from consilium.training.run_folder import open_run
from consilium.training.start import train_dataset
from tests.training.small_dataset import Budget, small_case, small_config, small_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_dataset(dataset, folder, small_config(), Budget(steps=60))
    return folder


def test_train_writes_everything_a_run_folder_holds(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(dataset.folder, folder, steps=6, structures="Bladder", scale_weights="1,0.5") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "split.json", "log.jsonl", "curves.png", "best.safetensors", "last.safetensors",
    }  # fmt: skip
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["structures"] == ["Bladder"]
    assert record["config"]["scale_weights"] == [1.0, 0.5]
    assert record["environment"]["torch"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    entry = open_run(folder).read_log()[-1]
    assert entry["step"] == 6
    assert entry["validation"]["cases"] == {"Bladder": 1}
    with pytest.raises(ConfigurationError, match="--resume"):
        train(dataset.folder, folder, steps=6)


def test_pack_evaluate_and_contour_agree(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    model = tmp_path / "small.consilium"
    pack(run, model)
    description, _, _ = read_model_file(model)
    assert description.card["training_cases"] == 4
    assert description.card["validation_dice"]["mean"] > 0.5
    evaluate(run, dataset.folder, tmp_path / "evaluation")
    record = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    log = open_run(run).read_log()
    shown = [entry for entry in log if entry["best"]][-1]["validation"]["mean"]
    assert record["mean_dice"] == pytest.approx(shown, abs=0.005)
    page = (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert "data:image/png" in page
    assert "surface" in page
    assert "The worst of each structure" in page
    assert "Bladder, lowest Dice first" in page

    unseen = small_case(77)
    write_nifti(tmp_path / "ct.nii.gz", unseen.image)
    contour([model, tmp_path / "ct.nii.gz", tmp_path / "out"], doubt=True)
    written = json.loads((tmp_path / "out" / "contours.json").read_text())
    assert [entry["structure"] for entry in written["structures"]] == ["Bladder", "Rectum"]
    truth = {a.structure: a.mask() for a in unseen.annotations if a.mask is not None}
    files = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert len(files) == 3
    bladder = read_nifti(next((tmp_path / "out").glob("Bladder*.nii.gz")))
    assert bladder.grid.is_same_as(unseen.image.grid)
    assert dice(truth["Bladder"].astype(bool), bladder.array > 0) > 0.7
    doubt = read_nifti(tmp_path / "out" / "doubt.nii.gz").array
    assert 0 <= doubt.min() <= doubt.max() <= 1
    assert np.isfinite(doubt).all()


def test_plan_says_what_training_would_do(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    plan(dataset.folder, measure=False)
    said = capsys.readouterr().out
    assert "4 cases train, 1 validate" in said
    assert "Whole volumes" in said


def test_settings_from_words() -> None:
    config = read_settings(structures="A, B", scale_weights="learned:3", spacing="3,1,1", seed=4)
    assert config.structures == ("A", "B")
    assert config.learned_weights
    assert config.scale_weights == (1.0, 1.0, 1.0)
    assert config.spacing_zyx_mm == (3.0, 1.0, 1.0)
    for words in ({"spacing": "3,1"}, {"scale_weights": "much"}):
        with pytest.raises(ConfigurationError):
            read_settings(**{"structures": "", "scale_weights": "", "spacing": "", **words})


def test_contour_needs_a_model_an_input_and_an_output() -> None:
    with pytest.raises(ConfigurationError, match="output folder"):
        contour([Path("a"), Path("b")])


def test_a_dicom_series_gets_an_rtstruct_of_its_own_frame_of_reference(run: Path, tmp_path: Path) -> None:
    import pydicom

    from consilium.phantoms.dicom import SeriesIdentity, write_series

    unseen = small_case(78)
    write_series(tmp_path / "ct", unseen.image, SeriesIdentity(label="unseen", manufacturer="Phantom"))
    contour([run, tmp_path / "ct", tmp_path / "out"])
    slices = [pydicom.dcmread(path) for path in (tmp_path / "ct").iterdir()]
    structures = pydicom.dcmread(tmp_path / "out" / "contours.dcm")
    assert structures.Modality == "RTSTRUCT"
    assert structures.ApprovalStatus == "UNAPPROVED"
    assert structures.PatientID == slices[0].PatientID
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == ["Bladder", "Rectum"]
    frames = {roi.ReferencedFrameOfReferenceUID for roi in structures.StructureSetROISequence}
    assert frames == {slices[0].FrameOfReferenceUID}
    known = {s.SOPInstanceUID for s in slices}
    drawn = [c for roi in structures.ROIContourSequence for c in roi.get("ContourSequence", [])]
    assert drawn
    for one in drawn:
        assert one.ContourImageSequence[0].ReferencedSOPInstanceUID in known
    write_nifti(tmp_path / "ct.nii.gz", unseen.image)
    with pytest.raises(ConfigurationError, match="rtstruct needs a DICOM input"):
        contour([run, tmp_path / "ct.nii.gz", tmp_path / "other"], output_format="rtstruct")
