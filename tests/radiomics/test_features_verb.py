"""From a dataset, or an image and masks, to a table of features, through the verb."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from consilium.cases.annotate import write_annotation
from consilium.cases.case import Case, Instance
from consilium.cases.dataset import create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import write_nifti
from consilium.cli.features import features, number_as
from consilium.errors import ConfigurationError, DataError, GeometryError
from consilium.geometry.affine import STANDARD_AXES_LPS, Affine
from consilium.geometry.volume import Grid, Volume
from consilium.radiomics.extraction import (
    Skipped,
    compute_contour_features,
    compute_dataset_features,
    number_like,
)
from consilium.radiomics.features import compute_features
from consilium.radiomics.settings import FixedBinNumber, RadiomicsSettings
from consilium.radiomics.settings_file import ct_settings, load_settings, settings_to_json
from consilium.radiomics.table import ContourKey, read_table
from tests.cases.drafts import ball_mask, draft
from tests.geometry.grids import grid

SETTINGS = """
resampled_spacing_zyx_mm = []
families = ["intensity statistics", "morphology"]
"""


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(features)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.output)


def settings_file(folder: Path) -> Path:
    path = folder / "settings.toml"
    path.write_text(SETTINGS, encoding="utf-8")
    return path


def nodule_draft(number: int) -> CaseDraft:
    target = grid((14, 30, 30), (2.5, 1.0, 1.0))
    labels = np.zeros(target.shape_zyx, np.uint8)
    labels[ball_mask(target, (6, 9, 9), 5.0)] = 1
    labels[ball_mask(target, (8, 21, 20), 4.0 + number)] = 2
    image = np.random.default_rng(number).integers(-900, 300, target.shape_zyx, dtype=np.int16)
    return CaseDraft(
        source_identity=f"1.2.{number}",
        patient_identity=f"p{number}",
        image=Volume(image, target),
        modality="CT",
        annotations=tuple(
            AnnotationDraft(
                structure="Nodule",
                reader=f"reader-{r}",
                mask=lambda r=r: np.roll(labels, r, axis=1),
            )
            for r in (1, 2)
        ),
        importer="test",
        source_sha256={"series": f"{number:064x}"},
        instances=tuple(
            Instance(structure="Nodule", number=n, centre_lps_mm=(0, 0, 0), diameter_mm=8) for n in (1, 2)
        ),
    )


def test_a_dataset_gives_rows_per_reader_and_instance(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "data")
    dataset.add(draft(1))
    dataset.add(nodule_draft(2))
    table = tmp_path / "features.csv"
    output = run(tmp_path / "data", table, "--settings", settings_file(tmp_path))
    rows = read_table(table)
    contours = {(r.contour.structure, r.contour.instance, r.contour.reader) for r in rows}
    assert contours == {
        ("Bladder", 0, "clinical"),
        ("Bladder", 0, "reader-2"),
        *(("Nodule", n, f"reader-{r}") for n in (1, 2) for r in (1, 2)),
    }
    assert {r.feature.family for r in rows} == {"intensity statistics", "morphology"}
    assert "Nodule" in output
    record = json.loads(table.with_suffix(".json").read_text())
    assert record["settings"]["discretisation"]["kind"] == "fixed-bin-width"
    assert record["skipped"] == []


def test_values_in_the_table_are_those_of_the_function(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "data")
    case, _ = dataset.add(draft(1))
    table = tmp_path / "features.csv"
    run(tmp_path / "data", table, "--settings", settings_file(tmp_path), "--structure", "Bladder")
    image, mask = dataset.load_image(case), dataset.load_mask(case, "Bladder", "reader-2")
    settings = load_settings(settings_file(tmp_path))
    expected = compute_features(image.array, mask, image.grid.spacing_zyx_mm, settings)
    found = {r.feature.tag: r.feature for r in read_table(table) if r.contour.reader == "reader-2"}
    for feature in expected:
        value = found[feature.tag].value
        assert value == feature.value or (math.isnan(value) and math.isnan(feature.value))
        assert found[feature.tag].processing == feature.processing


def test_predicted_things_take_the_numbers_of_what_they_lie_on() -> None:
    reference = np.zeros((2, 6, 12), np.int32)
    reference[:, 1:4, 1:4], reference[:, 1:4, 8:11] = 1, 2
    predicted = np.zeros(reference.shape, bool)
    predicted[:, 2:5, 8:10] = predicted[0, 5, 0] = True
    numbered = number_like(predicted, reference)
    assert (numbered == 2).sum() == 12
    assert numbered[0, 5, 0] == 3
    given = np.where(predicted, 7, 0) + np.where(reference == 1, 4, 0)
    assert set(np.unique(number_like(given, reference)).tolist()) == {0, 1, 2}
    assert not number_like(np.zeros_like(predicted), reference).any()


def test_a_prediction_is_measured_beside_the_readers(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "data")
    dataset.add(nodule_draft(2))
    settings = load_settings(settings_file(tmp_path))
    skipped = Skipped()

    def predict(case: Case, image: Volume) -> dict[str, np.ndarray]:
        return {"Nodule": dataset.load_instances(case, "Nodule", "reader-1") == 2}

    rows = list(compute_dataset_features(dataset, settings, skipped, predict=predict))
    volumes = {
        (r.contour.reader, r.contour.instance): r.feature.value
        for r in rows
        if r.feature.tag == "morph_volume"
    }
    assert volumes["prediction", 2] == volumes["reader-1", 2]
    assert ("prediction", 1) not in volumes
    assert skipped.reasons == []


def test_a_models_proposal_in_the_dataset_is_no_reader(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "d")
    case, _ = dataset.add(draft())
    mask = dataset.load_mask(case, "Bladder", "clinical")
    write_annotation(dataset, case.case_id, "Bladder", mask, reader="model-0123abcd")
    run(dataset.folder, tmp_path / "f.csv", "--settings", settings_file(tmp_path))
    assert {row.contour.reader for row in read_table(tmp_path / "f.csv")} == {"clinical", "reader-2"}


def test_stability_is_written_beside_the_table(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "data")
    for number in (1, 2, 3):
        dataset.add(nodule_draft(number))
    table = tmp_path / "features.csv"
    output = run(tmp_path / "data", table, "--settings", settings_file(tmp_path), "--stability")
    text = (tmp_path / "features.stability.csv").read_text().splitlines()
    assert text[0].startswith("compared,structure,tag,subjects,readings,icc_1,icc_1_low")
    compared = {line.split(",")[0] for line in text[1:]}
    assert compared == {"readers", "contour changes"}
    volume = next(line.split(",") for line in text if ",morph_volume," in line and "readers" in line)
    assert volume[3:5] == ["6", "2"]
    assert float(volume[5]) == pytest.approx(1, abs=1e-4)
    assert "excellent" in output


def test_an_image_and_a_folder_of_masks_give_a_table(tmp_path: Path) -> None:
    target = grid((10, 16, 16), (2.0, 1.0, 1.0))
    image = np.random.default_rng(1).integers(-100, 200, target.shape_zyx, dtype=np.int16)
    write_nifti(tmp_path / "ct.nii.gz", Volume(image, target))
    masks = tmp_path / "masks"
    masks.mkdir()
    labels = ball_mask(target, (5, 8, 8), 4.0).astype(np.uint8)
    write_nifti(masks / "Lens.nii.gz", Volume(labels, target))
    write_nifti(masks / "Empty.nii.gz", Volume(np.zeros_like(labels), target))
    labels = labels.copy()
    labels[:5] *= 2
    write_nifti(masks / "Halves.nii.gz", Volume(labels, target))
    table = tmp_path / "out.csv"
    output = run(tmp_path / "ct.nii.gz", masks, table, "--settings", settings_file(tmp_path))
    rows = read_table(table)
    assert {r.contour.structure for r in rows} == {"Lens", "Halves-1", "Halves-2"}
    assert "Left out" in output
    assert "Empty" in output


def test_a_mask_of_another_grid_is_refused(tmp_path: Path) -> None:
    here, there = grid((6, 8, 8), (2.0, 1.0, 1.0)), grid((6, 8, 8), (2.0, 1.0, 1.5))
    write_nifti(tmp_path / "ct.nii.gz", Volume(np.zeros((6, 8, 8), np.int16), here))
    write_nifti(tmp_path / "mask.nii.gz", Volume(np.ones((6, 8, 8), np.uint8), there))
    with pytest.raises(GeometryError, match="image's grid"):
        run(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "out.csv")


def test_probabilities_are_no_mask(tmp_path: Path) -> None:
    case = draft()
    values = np.zeros(case.image.grid.shape_zyx, np.float32)
    values[4:8, 4:12, 4:12] = 0.5
    write_nifti(tmp_path / "ct.nii.gz", case.image)
    write_nifti(tmp_path / "tumour.nii.gz", Volume(values, case.image.grid))
    with pytest.raises(DataError, match="whole numbers"):
        run(tmp_path / "ct.nii.gz", tmp_path / "tumour.nii.gz", tmp_path / "f.csv")


@pytest.mark.parametrize(
    ("permutation", "flips"), [((2, 1, 0), (0,)), ((1, 2, 0), (1, 2)), ((0, 1, 2), (0, 1))]
)
def test_the_orientation_in_which_an_image_is_stored_does_not_matter(
    permutation: tuple[int, int, int], flips: tuple[int, ...], rng: np.random.Generator
) -> None:
    target = grid((10, 16, 14), (2.0, 1.0, 1.2))
    image = rng.integers(-200, 300, target.shape_zyx, dtype=np.int16)
    mask = ball_mask(target, (5, 8, 7), 5.0)
    axes = np.zeros((3, 3))
    for k, axis in enumerate(permutation):
        axes[:, k] = STANDARD_AXES_LPS[:, axis] * (-1 if k in flips else 1)
    spacing = tuple(target.spacing_zyx_mm[axis] for axis in permutation)
    stored = [np.flip(a.transpose(permutation), flips) for a in (image, mask)]
    moved = Grid(stored[0].shape, Affine.from_spacing(spacing, axes_lps=axes))  # type: ignore[arg-type]
    settings = RadiomicsSettings(aggregations=("2D_avg", "3D_avg"))
    key = ContourKey(case_id="c", patient_id="p", structure="s", instance=0, reader="r")
    here = list(compute_contour_features(Volume(image, target), mask, key, settings))
    there = list(compute_contour_features(Volume(stored[0], moved), stored[1], key, settings))
    for a, b in zip(here, there, strict=True):
        assert a.feature.value == pytest.approx(b.feature.value, rel=1e-9, abs=1e-9), a.feature.tag


def test_misuse_is_named(tmp_path: Path) -> None:
    create_dataset(tmp_path / "data").add(draft(1))
    with pytest.raises(ConfigurationError, match=r"\*\.csv"):
        run(tmp_path / "data", tmp_path / "out.xlsx")
    with pytest.raises(ConfigurationError, match="consilium import"):
        run(tmp_path / "data", tmp_path / "data", tmp_path / "out.csv")
    with pytest.raises(ConfigurationError, match="Liver"):
        run(tmp_path / "data", tmp_path / "out.csv", "--structure", "Liver")


def test_settings_come_from_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        "intensity_range = [-500, 400]\n[discretisation]\nkind = 'fixed-bin-number'\nbins = 64\n",
        encoding="utf-8",
    )
    settings = load_settings(path)
    assert settings.discretisation == FixedBinNumber(64)
    assert settings.intensity_range == (-500, 400)
    assert settings.resampled_spacing_zyx_mm == ct_settings().resampled_spacing_zyx_mm
    record = settings_to_json(settings)
    assert record["discretisation"] == {"kind": "fixed-bin-number", "bins": 64}
    assert settings_to_json(RadiomicsSettings())["resampled_spacing_zyx_mm"] is None


@pytest.mark.parametrize(
    "text",
    [
        "colour = 3",
        "= 3",
        "discretisation = 'wide'",
        "distance = 'far'",
        "intensity_range = 5",
        "[discretisation]\nkind = 'fixed-bin-number'\ncolour = 1",
    ],
)
def test_settings_files_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError):
        load_settings(path)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns"):
        read_table(path)


def test_instances_of_a_prediction_take_the_number_of_what_they_overlap() -> None:
    reference = np.array([[[1, 1, 1, 0, 2, 2, 0, 0]]])
    labels = np.array([[[0, 2, 2, 2, 1, 0, 0, 3]]], np.uint16)
    assert number_as(labels, reference).tolist() == [[[0, 1, 1, 1, 2, 0, 0, 3]]]
