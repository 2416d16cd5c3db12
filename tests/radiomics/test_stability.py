"""Intraclass correlation against published values, and contours that change a little."""

import math

import numpy as np
import pytest

from consilium.errors import ConfigurationError
from consilium.radiomics.features import FeatureValue
from consilium.radiomics.stability import (
    Agreement,
    compare_perturbations,
    compare_readers,
    compute_icc,
    measure_perturbations,
    perturb_contour,
    stability_rows,
)
from consilium.radiomics.table import ContourKey, FeatureRow

SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def row(case: int, reader: str, value: float, *, derived: bool = False) -> FeatureRow:
    key = ContourKey(
        case_id=f"case-{case}",
        patient_id=f"patient-{case}",
        structure="Nodule",
        instance=1,
        reader=reader,
        derived=derived,
    )
    return FeatureRow(key, FeatureValue("stat_mean", "", "", "", "", "", value, "", ""))


def test_icc_of_shrout_and_fleiss_example_is_the_published_one() -> None:
    icc = compute_icc(SHROUT_FLEISS)
    for agreement, value, low, high in (
        (icc.icc_1, 0.166, -0.133, 0.723),
        (icc.icc_2, 0.290, 0.019, 0.761),
        (icc.icc_3, 0.715, 0.342, 0.946),
    ):
        assert agreement.value == pytest.approx(value, abs=6e-4)
        assert agreement.low == pytest.approx(low, abs=6e-4)
        assert agreement.high == pytest.approx(high, abs=6e-4)


def test_icc_estimates_the_share_of_variance_between_subjects(rng: np.random.Generator) -> None:
    truth = rng.normal(0, 2, (4000, 1))
    icc = compute_icc(truth + rng.normal(0, 1, (4000, 3)))
    for agreement in (icc.icc_1, icc.icc_2, icc.icc_3):
        assert agreement.value == pytest.approx(0.8, abs=0.02)
        assert agreement.low < 0.8 < agreement.high


def test_intervals_cover_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(300):
        readings = rng.normal(0, 2, (12, 1)) + rng.normal(0, 1, (12, 3))
        agreement = compute_icc(readings).icc_1
        hits += agreement.low <= 0.8 <= agreement.high
    assert 0.91 <= hits / 300 <= 0.99


def test_a_constant_offset_of_a_reader_hurts_agreement_but_not_consistency(rng: np.random.Generator) -> None:
    truth = rng.normal(0, 1, (50, 1))
    icc = compute_icc(truth + np.array([[0.0, 3.0]]))
    assert icc.icc_3.value == pytest.approx(1)
    assert icc.icc_2.value < 0.5


def test_what_cannot_be_computed_is_not_a_number() -> None:
    for readings in (np.ones((5, 3)), np.ones((1, 3)), np.ones((4, 1)), np.array([[1, np.nan], [2, 3]])):
        icc = compute_icc(readings)
        assert math.isnan(icc.icc_1.value)
        assert icc.icc_1.grade == "unknown"
    with pytest.raises(ConfigurationError, match="subjects, readers"):
        compute_icc(np.ones(3))


def test_grades_go_by_the_lower_end() -> None:
    grades = [Agreement(value=0.95, low=low, high=1.0).grade for low in (0.91, 0.8, 0.6, 0.2)]
    assert grades == ["excellent", "good", "moderate", "poor"]


def test_readers_are_compared_on_the_subjects_that_they_share() -> None:
    rows = [row(c, f"reader-{r}", 10.0 * c + r) for c in range(1, 6) for r in range(1, 4)]
    rows += [row(9, "reader-1", 500.0), row(1, "agreement-2", 0.0, derived=True)]
    rows += [row(c, "prediction", 0.0) for c in range(1, 6)]
    (found,) = compare_readers(rows)
    assert (found.icc.subjects, found.icc.readers) == (5, 3)
    assert found.icc.icc_3.value == pytest.approx(1)
    # Readings 11, 12, 13 of the first case to 51, 52, 53 of the last: the middle case's are 31, 32, 33.
    assert found.variation == pytest.approx(1 / 32)
    assert compare_readers(rows[:3]) == []


def test_the_most_readings_win_where_subjects_have_different_numbers() -> None:
    rows = [row(c, f"reader-{r}", c + 0.1 * r) for c in range(1, 9) for r in (1, 2)]
    rows += [row(c, f"reader-{r}", c + 0.1 * r) for c in (1, 2) for r in (3, 4)]
    (found,) = compare_readers(rows)
    assert (found.icc.subjects, found.icc.readers) == (8, 2)


def test_a_changed_contour_moves_by_about_the_amplitude(rng: np.random.Generator) -> None:
    spacing = (2.0, 1.0, 1.0)
    z, y, x = np.mgrid[:40, :80, :80]
    radius = np.sqrt(((z - 20) * 2.0) ** 2 + (y - 40) ** 2 + (x - 40) ** 2)
    mask = radius <= 20
    moves = []
    for _ in range(10):
        changed = perturb_contour(mask, spacing, rng, amplitude_mm=1.0)
        assert changed.shape == mask.shape
        assert not (changed & (radius > 26)).any()
        assert not (~changed & (radius < 14)).any()
        area = 4 * np.pi * 20**2
        moves.append((changed ^ mask).sum() * 2.0 / area)
    # The mean absolute value of a normal deviate is 0.8 of its standard deviation.
    assert np.mean(moves) == pytest.approx(0.8, abs=0.2)


def test_a_contour_changed_by_nothing_stays_and_none_vanishes(rng: np.random.Generator) -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    assert (perturb_contour(mask, (1.0, 1.0, 1.0), rng, amplitude_mm=0) == mask).all()
    for _ in range(20):
        assert perturb_contour(mask, (1.0, 1.0, 1.0), rng, amplitude_mm=2.0).any()
    assert not perturb_contour(np.zeros_like(mask), (1.0, 1.0, 1.0), rng).any()
    with pytest.raises(ConfigurationError, match="amplitude_mm"):
        perturb_contour(mask, (1.0, 1.0, 1.0), rng, amplitude_mm=-1)


def test_volume_is_more_stable_than_noise_under_changes(rng: np.random.Generator) -> None:
    z, y, x = np.mgrid[:30, :30, :30]
    subjects = []
    for radius in (6, 8, 10):
        mask = (z - 15) ** 2 + (y - 15) ** 2 + (x - 15) ** 2 <= radius**2
        noise = np.random.default_rng(radius)
        subjects.append(
            measure_perturbations(
                mask,
                (1.0, 1.0, 1.0),
                rng,
                lambda m, noise=noise: {"volume": float(m.sum()), "noise": float(noise.normal())},
                repeats=4,
                amplitude_mm=0.5,
            )
        )
    found = {entry.tag: entry for entry in compare_perturbations("Ball", subjects)}
    assert found["volume"].icc.readers == 5
    assert found["volume"].icc.icc_1.value > 0.9
    assert found["noise"].icc.icc_1.value < 0.5
    (first, _) = stability_rows("contour changes", found.values())
    assert first["grade"] in {"excellent", "good", "moderate", "poor"}
    assert compare_perturbations("Ball", []) == []
