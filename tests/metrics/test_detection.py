"""Detection figures against an independent plain-Python reading of LUNA16's rules."""

import math

import numpy as np
import pytest

from consilium.errors import ConfigurationError, GeometryError
from consilium.metrics.detection import (
    ScanFindings,
    bootstrap_cpm,
    bootstrap_sensitivity,
    compute_froc,
    compute_nodule_dice,
    match_scan,
)

RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def findings(
    nodules: list[tuple[float, ...]],
    candidates: list[tuple[float, ...]],
    excluded: list[tuple[float, ...]] | None = None,
) -> ScanFindings:
    """Rows of (x, y, z, diameter), (x, y, z, score) and (x, y, z, diameter)."""
    n, c, e = (np.array(rows, float).reshape(-1, 4) for rows in (nodules, candidates, excluded or []))
    return ScanFindings(
        nodule_points_lps_mm=n[:, :3],
        nodule_diameters_mm=n[:, 3],
        candidate_points_lps_mm=c[:, :3],
        candidate_scores=c[:, 3],
        excluded_points_lps_mm=e[:, :3],
        excluded_diameters_mm=e[:, 3],
    )


def random_scan(rng: np.random.Generator) -> tuple[list, list, list]:  # type: ignore[type-arg]
    """Crowded on purpose: nodules overlap, scores tie, candidates hit several findings."""
    nodules = [(*rng.uniform(0, 40, 3), rng.uniform(4, 30)) for _ in range(rng.integers(0, 4))]
    excluded = [
        (*rng.uniform(0, 40, 3), rng.choice([-1.0, rng.uniform(2, 15)])) for _ in range(rng.integers(0, 4))
    ]
    candidates = [(*rng.uniform(0, 40, 3), round(float(rng.random()), 1)) for _ in range(rng.integers(0, 15))]
    return nodules, candidates, excluded


def plain_rows(scans: list) -> tuple[list[tuple[float, bool]], int]:  # type: ignore[type-arg]
    """(score, is nodule) of everything that counts, and the number of nodules; one loop per rule."""
    rows: list[tuple[float, bool]] = []
    total = 0
    for nodules, candidates, excluded in scans:
        used: set[int] = set()
        for state, found in (("nodule", nodules), ("excluded", excluded)):
            for x, y, z, diameter in found:
                if diameter < 0:
                    diameter = 10.0
                scores = []
                for i, (cx, cy, cz, score) in enumerate(candidates):
                    if (cx - x) ** 2 + (cy - y) ** 2 + (cz - z) ** 2 < (diameter / 2) ** 2:
                        used.add(i)
                        scores.append(score)
                if state == "nodule":
                    total += 1
                    if scores:
                        rows.append((max(scores), True))
        rows += [(c[3], False) for i, c in enumerate(candidates) if i not in used]
    return rows, total


def plain_cpm(scans: list) -> float:  # type: ignore[type-arg]
    rows, total = plain_rows(scans)
    if not total:
        return math.nan
    curve = [(0.0, 0.0)]
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        hits = sum(1 for score, is_nodule in rows if is_nodule and score >= threshold)
        wrong = sum(1 for score, is_nodule in rows if not is_nodule and score >= threshold)
        curve.append((wrong / len(scans), hits / total))
    sensitivities = []
    for rate in RATES:
        before = [p for p in curve if p[0] <= rate][-1]
        after = next((p for p in curve if p[0] > rate), None)
        if after is None:
            sensitivities.append(before[1])
        else:
            share = (rate - before[0]) / (after[0] - before[0])
            sensitivities.append(before[1] + share * (after[1] - before[1]))
    return sum(sensitivities) / len(sensitivities)


def test_scorer_agrees_with_an_independent_one_on_200_random_candidate_sets(
    rng: np.random.Generator,
) -> None:
    compared = 0
    for _ in range(200):
        scans = [random_scan(rng) for _ in range(rng.integers(1, 6))]
        matches = [match_scan(findings(*scan)) for scan in scans]
        expected, ours = plain_cpm(scans), compute_froc(matches).cpm
        assert ours == pytest.approx(expected, abs=1e-12, nan_ok=True)
        rows, _ = plain_rows(scans)
        wrong = sorted(score for score, is_nodule in rows if not is_nodule)
        assert sorted(np.concatenate([m.false_positive_scores for m in matches])) == wrong
        compared += not math.isnan(expected)
    assert compared > 150


def test_a_candidate_on_the_radius_misses() -> None:
    nodule = [(0.0, 0.0, 0.0, 10.0)]
    assert match_scan(findings(nodule, [(5.0, 0.0, 0.0, 0.9)])).nodule_scores[0] == -np.inf
    assert match_scan(findings(nodule, [(4.999, 0.0, 0.0, 0.9)])).nodule_scores[0] == 0.9


def test_a_second_hit_is_a_duplicate_and_no_false_positive() -> None:
    matches = match_scan(findings([(0, 0, 0, 10)], [(0, 0, 1, 0.4), (0, 1, 0, 0.8)]))
    assert matches.nodule_scores.tolist() == [0.8]
    assert matches.duplicates == 1
    assert len(matches.false_positive_scores) == 0


def test_a_hit_on_an_excluded_finding_counts_neither_way() -> None:
    matches = match_scan(findings([], [(4, 0, 0, 0.9), (20, 0, 0, 0.3)], [(0, 0, 0, -1)]))
    assert matches.ignored == 1
    assert matches.false_positive_scores.tolist() == [0.3]


def test_one_candidate_may_find_two_nodules() -> None:
    matches = match_scan(findings([(0, 0, 0, 10), (2, 0, 0, 10)], [(1, 0, 0, 0.7)]))
    assert matches.nodule_scores.tolist() == [0.7, 0.7]


def test_a_perfect_detector_has_cpm_one_and_a_blind_one_zero() -> None:
    perfect = [match_scan(findings([(0, 0, 0, 10)], [(0, 0, 0, 0.9)]))] * 3
    blind = [match_scan(findings([(0, 0, 0, 10)], []))] * 3
    assert compute_froc(perfect).cpm == 1
    assert compute_froc(blind).cpm == 0
    assert math.isnan(compute_froc([match_scan(findings([], [(0, 0, 0, 0.9)]))]).cpm)


def test_the_curve_of_a_small_example_is_the_one_on_paper() -> None:
    scans = [
        match_scan(findings([(0, 0, 0, 10)], [(0, 0, 0, 0.9), (50, 0, 0, 0.8)])),
        match_scan(findings([(0, 0, 0, 10)], [(0, 0, 0, 0.7), (50, 0, 0, 0.6)])),
    ]
    froc = compute_froc(scans)
    assert froc.false_positives_per_scan.tolist() == [0, 0, 0.5, 0.5, 1]
    assert froc.sensitivity.tolist() == [0, 0.5, 0.5, 1, 1]
    assert froc.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6]
    assert froc.cpm == pytest.approx((0.5 + 0.5 + 1 + 1 + 1 + 1 + 1) / 7)


def test_the_interval_holds_the_estimate_and_narrows_with_more_scans(rng: np.random.Generator) -> None:
    def scans(count: int) -> list:  # type: ignore[type-arg]
        return [
            match_scan(findings([(0, 0, 0, 10)], [(0, 0, 0, 0.9)] if i % 2 else [])) for i in range(count)
        ]

    few, many = bootstrap_cpm(scans(10), rng, samples=300), bootstrap_cpm(scans(200), rng, samples=300)
    assert few.low <= few.estimate == 0.5 <= few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.estimate == bootstrap_sensitivity(scans(200), rng, 1.0, samples=10).estimate
    assert math.isnan(bootstrap_cpm(scans(1), rng).low)


def test_findings_that_cannot_be_are_refused() -> None:
    with pytest.raises(GeometryError, match="> 0"):
        findings([(0, 0, 0, -1)], [])
    with pytest.raises(GeometryError, match="finite"):
        findings([], [(0, 0, np.nan, 0.5)])
    with pytest.raises(ConfigurationError, match="at least one scan"):
        compute_froc([])


def test_whole_scan_dice_counts_a_missed_nodule_as_zero() -> None:
    reference = np.zeros((4, 20, 20), int)
    reference[1, 2:6, 2:6] = 1
    reference[2, 12:14, 12:14] = 2
    prediction = np.zeros_like(reference)
    prediction[1, 2:6, 2:4] = 5
    prediction[3, 18:, 18:] = 6
    scan = compute_nodule_dice(reference, prediction)
    assert scan.per_nodule == pytest.approx((2 * 8 / (16 + 8), 0.0))
    assert scan.found == (True, False)
    assert scan.mean == pytest.approx(1 / 3)
    assert scan.mean_of_found == pytest.approx(2 / 3)
    assert scan.false_positives == 1
    assert scan.union == pytest.approx(2 * 8 / (20 + 12))


def test_a_scan_without_nodules_has_no_dice() -> None:
    empty = np.zeros((2, 3, 3), int)
    scan = compute_nodule_dice(empty, empty)
    assert math.isnan(scan.mean)
    assert math.isnan(scan.union)
    assert scan.false_positives == 0
