"""The characterisation finds what is there, says so when nothing is, and refuses too few cases."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from consilium.cases.case import Instance
from consilium.cases.dataset import create_dataset
from consilium.cli.characterise import characterise_verb
from consilium.errors import ConfigurationError, DataError
from consilium.radiomics.characterise import (
    DIAMETER,
    CharacterisationSettings,
    calibrate,
    characterise,
    compute_auc,
    split_by_patient,
)
from consilium.radiomics.features import FeatureValue
from consilium.radiomics.table import ContourKey, FeatureRow, read_table, write_table
from consilium.radiomics.targets import (
    Cohort,
    build_cohort,
    targets_from_csv,
    targets_from_ratings,
)
from tests.cases.drafts import draft

QUICK = CharacterisationSettings(outer_folds=4, inner_folds=3, features=(1, 4), strengths=(0.1,), samples=300)


def cohort(
    rng: np.random.Generator, *, subjects: int = 240, texture: float = 2.0, size: float = 1.0
) -> Cohort:
    """Targets that depend on the diameter and on one of twenty textures, two subjects per patient."""
    values = rng.normal(0, 1, (subjects, 21))
    logit = size * values[:, 0] + texture * values[:, 5]
    target = (rng.random(subjects) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    values[rng.random(values.shape) < 0.02] = np.nan
    values[:, 0] = np.nan_to_num(values[:, 0])
    return Cohort(
        subjects=tuple((f"case-{i}", "Nodule", 1) for i in range(subjects)),
        patients=np.array([f"patient-{i // 2}" for i in range(subjects)]),
        tags=(DIAMETER, *(f"texture-{i}" for i in range(1, 21))),
        values=values,
        target=target,
    )


def test_a_texture_that_tells_more_than_size_is_found(rng: np.random.Generator) -> None:
    result = characterise(cohort(rng), QUICK)
    assert result.model.auc.value > 0.8
    assert result.difference.low > 0
    assert "more than the diameter" in result.verdict
    assert next(iter(result.chosen)) == "texture-5"
    assert result.chosen["texture-5"] == 4
    assert 0.6 < result.model.calibration.slope < 1.6
    assert result.model.calibration.brier < result.diameter.calibration.brier
    assert sum(result.model.calibration.counts) == result.subjects == 240


def test_features_without_information_are_not_shown_to_help(rng: np.random.Generator) -> None:
    result = characterise(cohort(rng, texture=0.0), QUICK)
    assert result.difference.low <= 0
    assert "not shown" in result.verdict or "less" in result.verdict
    assert result.diameter.auc.low < 0.73 < result.diameter.auc.high + 0.05


def test_pure_noise_has_an_auc_of_about_one_half() -> None:
    found = []
    for seed in range(6):
        noise = cohort(np.random.default_rng(seed), texture=0.0, size=0.0)
        found.append(characterise(noise, QUICK).model.auc.value)
    # A leak of the target into the choice of features would push the mean well above.
    assert abs(np.mean(found) - 0.5) < 0.06


def test_patients_never_stand_on_both_sides(rng: np.random.Generator) -> None:
    given = cohort(rng)
    folds = split_by_patient(given.target, given.patients, 4, 1)
    for train, test in folds:
        assert not set(given.patients[train]) & set(given.patients[test])
        assert len(train) + len(test) == 240
    held_out = np.concatenate([test for _, test in folds])
    assert sorted(held_out.tolist()) == list(range(240))


def test_too_few_patients_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match=r"at least 20 patients of either kind .* found \d+ with target 0"):
        characterise(cohort(rng, subjects=36))


def test_a_table_without_the_diameter_is_refused(rng: np.random.Generator) -> None:
    given = cohort(rng)
    without = Cohort(
        subjects=given.subjects,
        patients=given.patients,
        tags=given.tags[1:],
        values=given.values[:, 1:],
        target=given.target,
    )
    with pytest.raises(DataError, match="morph_diam"):
        characterise(without, QUICK)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    score, target = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([0, 0, 1, 1, 1])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[target == 1] for b in score[target == 0]]
    assert compute_auc(score, target) == pytest.approx(np.mean(pairs))
    assert math.isnan(compute_auc(score, np.ones(5, int)))


def test_calibration_sees_what_is_too_sure(rng: np.random.Generator) -> None:
    logit = rng.normal(0, 1.5, 4000)
    target = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    right = calibrate(1 / (1 + np.exp(-logit)), target)
    assert right.slope == pytest.approx(1, abs=0.1)
    assert right.intercept == pytest.approx(0, abs=0.1)
    np.testing.assert_allclose(right.predicted, right.observed, atol=0.06)
    assert calibrate(1 / (1 + np.exp(-2 * logit)), target).slope == pytest.approx(0.5, abs=0.06)
    assert calibrate(1 / (1 + np.exp(-logit - 1)), target).intercept == pytest.approx(-1, abs=0.12)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"outer_folds": 1}, {"features": ()}, {"confidence": 1.0}, {"min_patients_per_class": 2}):
        with pytest.raises(ConfigurationError):
            CharacterisationSettings(**wrong)  # type: ignore[arg-type]


def feature_row(case: int, reader: str, tag: str, value: float, *, derived: bool = False) -> FeatureRow:
    key = ContourKey(
        case_id=f"case-{case}",
        patient_id=f"patient-{case}",
        structure="Nodule",
        instance=1,
        reader=reader,
        derived=derived,
    )
    return FeatureRow(key, FeatureValue(tag, "", "", "", "", "", value, "", ""))


def test_a_cohort_takes_the_mean_over_readers_and_drops_what_is_often_undefined() -> None:
    rows = []
    for case in range(6):
        rows += [feature_row(case, f"reader-{r}", DIAMETER, case + r) for r in (1, 3)]
        rows += [feature_row(case, "reader-1", "often", math.nan if case < 2 else 1.0)]
        rows += [feature_row(case, "reader-1", "rarely", math.nan if case < 1 else 1.0)]
        rows += [feature_row(case, "agreement-2", DIAMETER, 99, derived=True)]
        rows += [feature_row(case, "prediction", DIAMETER, 77)]
    targets = {(f"case-{case}", "Nodule", 1): case % 2 for case in range(5)} | {("case-5", "", 0): 1}
    found = build_cohort(rows, targets)
    assert found.tags == (DIAMETER, "rarely")
    assert found.column(DIAMETER).tolist() == [2, 3, 4, 5, 6, 7]
    assert found.target.tolist() == [0, 1, 0, 1, 0, 1]
    assert build_cohort(rows, targets, reader="prediction").column(DIAMETER).tolist() == [77] * 6
    assert build_cohort(rows, {}).subjects == ()


def test_ratings_become_targets_unless_nobody_knows(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "data")
    marks = (
        {"a": {"malignancy": 5}, "b": {"malignancy": 4}},
        {"a": {"malignancy": 3}},
        {"a": {"malignancy": 1}},
        {},
    )
    instances = tuple(
        Instance(structure="Bladder", number=i + 1, centre_lps_mm=(0, 0, 0), diameter_mm=5, ratings=ratings)
        for i, ratings in enumerate(marks)
    )
    given = draft(1)
    case, _ = dataset.add(type(given)(**(vars(given) | {"instances": instances})))
    assert targets_from_ratings(dataset) == {
        (case.case_id, "Bladder", 1): 1,
        (case.case_id, "Bladder", 3): 0,
    }


def test_targets_come_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "targets.csv"
    path.write_text("case_id,structure,instance,relapse\nc1,Nodule,2,1\nc2,Nodule,1,\n", encoding="utf-8")
    assert targets_from_csv(path, "relapse") == {("c1", "Nodule", 2): 1}
    path.write_text("case_id,relapse\nc1,0\n", encoding="utf-8")
    assert targets_from_csv(path, "relapse") == {("c1", "", 0): 0}
    with pytest.raises(DataError, match="death"):
        targets_from_csv(path, "death")
    path.write_text("case_id,relapse\nc1,maybe\n", encoding="utf-8")
    with pytest.raises(DataError, match="0, 1 or empty"):
        targets_from_csv(path, "relapse")


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(characterise_verb)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return str(result.output)


def test_instances_as_a_spreadsheet_writes_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "target.csv"
    path.write_text("case_id,structure,instance,malignant\ncase-1,Nodule,2.0,1\n")
    assert targets_from_csv(path, "malignant") == {("case-1", "Nodule", 2): 1}
    path.write_text("case_id,structure,instance,malignant\ncase-1,Nodule,left,1\n")
    with pytest.raises(DataError, match="whole number"):
        targets_from_csv(path, "malignant")


def test_the_verb_writes_figures_predictions_and_a_picture(tmp_path: Path, rng: np.random.Generator) -> None:
    given = cohort(rng, subjects=120)
    rows = [
        feature_row(i, "reader-1", tag, float(given.values[i, k]))
        for i in range(120)
        for k, tag in enumerate(given.tags[:8])
    ]
    write_table(tmp_path / "features.csv", rows)
    assert len(read_table(tmp_path / "features.csv")) == 960
    lines = [f"case-{i},{given.target[i]}" for i in range(120)]
    (tmp_path / "targets.csv").write_text("case_id,malignant\n" + "\n".join(lines), encoding="utf-8")
    out = tmp_path / "report"
    output = run(tmp_path / "features.csv", tmp_path / "targets.csv", out, "--column", "malignant")
    record = json.loads((out / "characterisation.json").read_text())
    assert record["verdict"] in " ".join(output.split())
    assert record["model"]["auc"]["low"] <= record["model"]["auc"]["value"] <= record["model"]["auc"]["high"]
    with (out / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 120
    auc = compute_auc(
        np.array([float(p["model"]) for p in predictions]), np.array([int(p["target"]) for p in predictions])
    )
    assert auc == pytest.approx(record["model"]["auc"]["value"], abs=1e-4)
    assert (out / "characterisation.png").stat().st_size > 10_000
    with pytest.raises(DataError, match="at least 90 patients"):
        run(
            *(tmp_path / "features.csv", tmp_path / "targets.csv", out, "--column", "malignant"),
            *("--min-patients", "90"),
        )
