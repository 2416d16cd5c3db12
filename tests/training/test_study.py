"""The study and the learning curve: same split for all, resumable, fitted truly."""

import signal
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.dataset import Dataset
from consilium.cli.console import INTERRUPTED
from consilium.cli.learning_curve import answer, learning_curve
from consilium.cli.study import study
from consilium.errors import ConfigurationError, RunError
from consilium.training.config import Budget
from consilium.training.learning_curve import Point, fit_curve, run_learning_curve
from consilium.training.run_folder import open_run
from consilium.training.study import (
    ARMS,
    StudyConfig,
    run_place,
    run_study,
    spread_over_seeds,
    summarise_arm,
)
from tests.training.small_dataset import small_case, small_config, small_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset", cases=6)


def test_every_arm_trains_on_the_same_split_and_goes_on_after_an_interruption(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = StudyConfig(
        base=small_config(channels=(16, 32, 64)), budget=Budget(steps=2), arms=ARMS, seeds=(0,)
    )
    asked = iter(range(1000))
    first = run_study(dataset, tmp_path, config, should_stop=lambda: next(asked) > 3)
    assert 0 < len(first) < 4
    results = run_study(dataset, tmp_path, config)
    assert [r.arm for r in results] == [arm.name for arm in ARMS]
    assert results[0] == first[0]
    splits = {open_run(run_place(tmp_path, arm.name, 0)).split.validation for arm in ARMS}
    assert len(splits) == 1
    assert {tuple(r.dice) for r in results} == {next(iter(splits))}
    assert summarise_arm(results, "U-Net").count == 1
    kinds = [open_run(run_place(tmp_path, arm.name, 0)).plan.network for arm in ARMS]
    assert [network.kind for network in kinds] == ["unet3d", "iunet", "iunet", "iunet"]
    assert [network.heads for network in kinds] == [1, 1, 3, 3]


def test_the_study_writes_one_page(dataset: Dataset, tmp_path: Path) -> None:
    assert study(dataset.folder, tmp_path / "study", steps=1, seeds=1, structures="Bladder") == 0
    page = (tmp_path / "study" / "study.html").read_text()
    for arm in ARMS:
        assert arm.name in page
    assert page.count("data:image/png") >= 4
    assert page.count('<svg class="chart"') == 2
    with pytest.raises(ConfigurationError, match="other settings"):
        study(dataset.folder, tmp_path / "study", steps=2, seeds=1, structures="Bladder")


def test_the_learning_curve_grows_by_patients_and_validates_on_the_same(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = small_config()
    points = run_learning_curve(dataset, tmp_path, config, Budget(steps=1), seeds=(0,))
    assert [p.patients for p in points] == [2, 4, 5]
    runs = [open_run(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert len({run.split.validation for run in runs}) == 1
    assert set(runs[0].split.training) < set(runs[1].split.training) < set(runs[2].split.training)
    again = run_learning_curve(dataset, tmp_path, config, Budget(steps=1), seeds=(0,))
    assert again == points
    with pytest.raises(RunError, match="other settings"):
        run_learning_curve(dataset, tmp_path, config, Budget(steps=2), seeds=(0,))


def test_a_structure_without_a_validation_patient_has_no_learning_curve(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "dataset", cases=1)
    for number in range(1, 6):
        dataset.add(small_case(number, known=("Bladder", "Rectum") if number == 2 else ("Bladder",)))
    points = run_learning_curve(dataset, tmp_path / "curve", small_config(), Budget(steps=1), seeds=(0, 1))
    assert {tuple(point.dice) for point in points} == {("Bladder",)}
    asked = small_config(structures=("Bladder", "Rectum"))
    with pytest.raises(ConfigurationError, match=r"\['Rectum'\] are not"):
        run_learning_curve(dataset, tmp_path / "asked", asked, Budget(steps=1))


def test_a_study_that_could_measure_nothing_says_so(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "dataset", cases=1)
    dataset.add(small_case(1, known=("Bladder",), absent="Bladder"))
    config = StudyConfig(
        base=small_config(structures=("Bladder",), seed=2), budget=Budget(steps=1), arms=ARMS[:1], seeds=(0,)
    )
    results = run_study(dataset, tmp_path / "study", config)
    assert [result.mean_dice for result in results] == [None]
    assert np.isnan(spread_over_seeds(results, ARMS[0].name)).all()
    assert run_study(dataset, tmp_path / "study", config) == results


def test_a_study_does_not_go_on_with_other_patients(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "dataset", cases=3)
    config = StudyConfig(base=small_config(), budget=Budget(steps=1), arms=ARMS[:1], seeds=(0,))
    run_study(dataset, tmp_path / "study", config)
    dataset.add(small_case(7))
    with pytest.raises(RunError, match="the same cases"):
        run_study(dataset, tmp_path / "study", config)


def test_an_interrupted_learning_curve_is_no_answer(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_after_one(*_: object, **__: object) -> list[Point]:
        signal.raise_signal(signal.SIGINT)
        return [Point(patients=2, seed=0, dice={"Bladder": 0.5})]

    monkeypatch.setattr("consilium.cli.learning_curve.run_learning_curve", stopped_after_one)
    assert learning_curve(dataset.folder, tmp_path / "curve", steps=1, seeds=1) == INTERRUPTED
    assert not (tmp_path / "curve" / "learning-curve.json").exists()


def test_a_power_law_is_found_again(rng: np.random.Generator) -> None:
    patients = np.repeat([8.0, 15.0, 22.0, 30.0, 60.0], 4)
    truth = 0.85 - 0.6 * patients**-0.6
    fit = fit_curve(patients.tolist(), (truth + rng.normal(0, 0.003, len(truth))).tolist(), rng)
    assert fit is not None
    value, low, high = fit.at(120)
    expected = 0.85 - 0.6 * 120**-0.6
    assert value == pytest.approx(expected, abs=0.01)
    assert low <= expected <= high
    assert high - low < 0.1


def test_two_numbers_of_patients_are_too_few_for_a_law() -> None:
    assert fit_curve([5, 5, 10, 10], [0.5, 0.52, 0.6, 0.61], np.random.default_rng(0)) is None


def test_the_answer_has_a_row_per_structure() -> None:
    points = [
        Point(patients=n, seed=s, dice={"Bladder": 0.9 - 1.0 / n, "Rectum": None})
        for n in (5, 10, 20)
        for s in (0, 1)
    ]
    table, figures = answer(points)
    assert [row[0] for row in table.rows] == ["Bladder", "Rectum"]
    assert "5000" in " ".join(table.columns)
    assert len(figures) == 2
