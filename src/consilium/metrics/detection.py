"""How well nodules are found: matching by LUNA16's rules, FROC, CPM with intervals, whole-scan Dice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consilium.errors import ConfigurationError, GeometryError
from consilium.metrics.intervals import Interval, check_confidence, percentile_ends
from consilium.metrics.overlap import dice_from_counts
from consilium.types import Array, FloatArray

CPM_FALSE_POSITIVES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Where the competition performance metric reads the sensitivity."""

UNKNOWN_DIAMETER_MM = 10.0
"""What LUNA16's scorer takes for an excluded finding whose diameter is negative, i.e. unknown."""


@dataclass(frozen=True, kw_only=True)
class ScanFindings:
    """The reference nodules of one scan and the candidates found in it; all may be empty.

    Attributes:
        nodule_points_lps_mm: (N, 3) centres of the nodules to be found.
        nodule_diameters_mm: (N,) > 0.
        candidate_points_lps_mm: (K, 3) centres of the candidates.
        candidate_scores: (K,) finite; higher means surer.
        excluded_points_lps_mm: (E, 3) findings that are neither to be found nor wrong (too small, say).
        excluded_diameters_mm: (E,); negative means unknown and is taken as 10 mm.
    """

    nodule_points_lps_mm: FloatArray
    nodule_diameters_mm: FloatArray
    candidate_points_lps_mm: FloatArray
    candidate_scores: FloatArray
    excluded_points_lps_mm: FloatArray
    excluded_diameters_mm: FloatArray

    def __post_init__(self) -> None:
        pairs = (
            ("nodule", self.nodule_points_lps_mm, self.nodule_diameters_mm),
            ("candidate", self.candidate_points_lps_mm, self.candidate_scores),
            ("excluded", self.excluded_points_lps_mm, self.excluded_diameters_mm),
        )
        for name, points, values in pairs:
            if points.shape != (len(values), 3) or values.ndim != 1:
                raise GeometryError(
                    f"{name}: points must be (N, 3) with N values; found {points.shape} and {values.shape}."
                )
            if not (np.isfinite(points).all() and np.isfinite(values).all()):
                raise GeometryError(f"{name}: points and values must be finite; found NaN or infinity.")
        if (self.nodule_diameters_mm <= 0).any():
            raise GeometryError(
                f"nodule_diameters_mm: must be > 0; found {self.nodule_diameters_mm.min()} mm. "
                "Put findings of unknown size among the excluded."
            )


@dataclass(frozen=True, kw_only=True)
class ScanMatches:
    """What became of one scan's nodules and candidates.

    Attributes:
        nodule_scores: (N,) highest score of the candidates that hit each nodule; −inf if none did.
        false_positive_scores: (F,) scores of candidates that hit neither a nodule nor an excluded finding.
        duplicates: Hits beyond the first on a nodule, which count neither way.
        ignored: Candidates that hit only excluded findings, which count neither way.
    """

    nodule_scores: FloatArray
    false_positive_scores: FloatArray
    duplicates: int
    ignored: int


@dataclass(frozen=True, kw_only=True)
class Froc:
    """The free-response curve, from the highest score to the lowest.

    Attributes:
        false_positives_per_scan: (P,) ascending, starts at 0.
        sensitivity: (P,) ascending in [0, 1]; NaN if there is no nodule.
        thresholds: (P,) score at or above which candidates count; starts at +inf.
        nodules: Nodules in all scans.
        scans: Number of scans.
    """

    false_positives_per_scan: FloatArray
    sensitivity: FloatArray
    thresholds: FloatArray
    nodules: int
    scans: int

    def sensitivity_at(self, false_positives_per_scan: float) -> float:
        """Sensitivity at a number of false positives per scan, linear between points, last value beyond."""
        return float(np.interp(false_positives_per_scan, self.false_positives_per_scan, self.sensitivity))

    @property
    def cpm(self) -> float:
        """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan; NaN without nodules."""
        return float(np.mean([self.sensitivity_at(f) for f in CPM_FALSE_POSITIVES_PER_SCAN]))


def match_scan(findings: ScanFindings) -> ScanMatches:
    """Match one scan's candidates to its nodules by the rules of LUNA16's scorer.

    A candidate hits a finding if it lies nearer to its centre than its radius. A nodule takes the highest
    score of its hits; further hits are duplicates. One candidate may hit several nodules. What hits only an
    excluded finding is ignored; every other candidate is a false positive.

    Source:
        Setio et al. 2017, Med Image Anal 42:1-13, section 3.4, and the challenge's published scorer.
    """
    points, scores = findings.candidate_points_lps_mm, findings.candidate_scores
    hits = _hits(points, findings.nodule_points_lps_mm, findings.nodule_diameters_mm)
    diameters = findings.excluded_diameters_mm
    diameters = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters)
    on_excluded = _hits(points, findings.excluded_points_lps_mm, diameters).any(axis=1)
    on_nodule = hits.any(axis=1)
    best = np.where(hits, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    return ScanMatches(
        nodule_scores=best,
        false_positive_scores=scores[~on_nodule & ~on_excluded],
        duplicates=int(np.maximum(hits.sum(axis=0) - 1, 0).sum()),
        ignored=int((on_excluded & ~on_nodule).sum()),
    )


def compute_froc(matches: Sequence[ScanMatches]) -> Froc:
    """The FROC curve over scans.

    Args:
        matches: At least one scan, with or without nodules or candidates.

    Raises:
        ConfigurationError: If there is no scan.
    """
    if not matches:
        raise ConfigurationError("compute_froc: needs at least one scan; found none.")
    nodule_scores = np.concatenate([m.nodule_scores for m in matches])
    wrong = np.concatenate([m.false_positive_scores for m in matches])
    found = nodule_scores[np.isfinite(nodule_scores)]
    thresholds = np.unique(np.concatenate([found, wrong]))[::-1]
    hits = len(found) - np.searchsorted(np.sort(found), thresholds, side="left")
    false = len(wrong) - np.searchsorted(np.sort(wrong), thresholds, side="left")
    nodules = len(nodule_scores)
    rates = np.concatenate([[0], hits]) / (nodules if nodules else np.nan)
    return Froc(
        false_positives_per_scan=np.concatenate([[0], false]) / len(matches),
        sensitivity=rates,
        thresholds=np.concatenate([[np.inf], thresholds]),
        nodules=nodules,
        scans=len(matches),
    )


def bootstrap_cpm(
    matches: Sequence[ScanMatches],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
) -> Interval:
    """CPM with a percentile bootstrap interval that resamples scans.

    Args:
        matches: One entry per scan.
        rng: Generator of the resampling.
        confidence: In (0, 1).
        samples: Number of resamples; a resample without any nodule is left out.

    Returns:
        The interval; NaN if there is no nodule; low and high NaN for a single scan.
    """
    return _bootstrap(matches, rng, None, confidence, samples)


def bootstrap_sensitivity(
    matches: Sequence[ScanMatches],
    rng: np.random.Generator,
    false_positives_per_scan: float,
    *,
    confidence: float = 0.95,
    samples: int = 1000,
) -> Interval:
    """Sensitivity at one number of false positives per scan, with an interval as in `bootstrap_cpm`."""
    return _bootstrap(matches, rng, false_positives_per_scan, confidence, samples)


def _bootstrap(
    matches: Sequence[ScanMatches],
    rng: np.random.Generator,
    at: float | None,
    confidence: float,
    samples: int,
) -> Interval:
    check_confidence(confidence, samples)

    def figure(chosen: Sequence[ScanMatches]) -> float:
        froc = compute_froc(chosen)
        return froc.cpm if at is None else froc.sensitivity_at(at)

    low = high = float("nan")
    if len(matches) > 1:
        draws = rng.integers(0, len(matches), (samples, len(matches)))
        drawn = np.array([figure([matches[i] for i in draw]) for draw in draws])
        low, high = percentile_ends(drawn, confidence)
    return Interval(estimate=figure(matches), low=low, high=high, confidence=confidence, count=len(matches))


@dataclass(frozen=True, kw_only=True)
class NoduleDice:
    """Dice per reference nodule of one whole scan.

    Attributes:
        per_nodule: Dice with the predicted nodule that overlaps it best; 0 for a missed one.
        found: Whether any predicted voxel touches it.
        false_positives: Predicted nodules that touch no reference nodule.
        union: Dice of all nodules together against all predictions together.
    """

    per_nodule: tuple[float, ...]
    found: tuple[bool, ...]
    false_positives: int
    union: float

    @property
    def mean(self) -> float:
        """Mean over all reference nodules, a missed one counting 0; NaN if the scan has none."""
        return float(np.mean(self.per_nodule)) if self.per_nodule else float("nan")

    @property
    def mean_of_found(self) -> float:
        """Mean over the nodules found only: what cropped evaluation shows; NaN if none was found."""
        values = [d for d, found in zip(self.per_nodule, self.found, strict=True) if found]
        return float(np.mean(values)) if values else float("nan")


def compute_nodule_dice(reference_labelmap: Array, prediction_labelmap: Array) -> NoduleDice:
    """Dice of each nodule over the whole scan.

    Args:
        reference_labelmap: (Z, Y, X) integers ≥ 0; 0 is no nodule, each nodule has its own value.
        prediction_labelmap: The same for the predicted nodules, same shape.

    Raises:
        GeometryError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> reference = np.array([[[1, 1, 0, 0, 2]]])
        >>> compute_nodule_dice(reference, np.array([[[1, 1, 0, 0, 0]]])).mean
        0.5
    """
    if reference_labelmap.shape != prediction_labelmap.shape:
        raise GeometryError(
            f"labelmaps: must lie on one grid; found {reference_labelmap.shape} and "
            f"{prediction_labelmap.shape}. Resample the prediction first."
        )
    references, reference_index = np.unique(reference_labelmap, return_inverse=True)
    predictions, prediction_index = np.unique(prediction_labelmap, return_inverse=True)
    table = np.zeros((len(references), len(predictions)), np.int64)
    np.add.at(table, (reference_index.ravel(), prediction_index.ravel()), 1)
    wanted, given = references != 0, predictions != 0
    overlap = table[np.ix_(wanted, given)]
    reference_voxels, prediction_voxels = table.sum(axis=1)[wanted], table.sum(axis=0)[given]
    per_nodule = [
        max(
            (dice_from_counts(size, n, both) for n, both in zip(prediction_voxels, row, strict=True)),
            default=0.0,
        )
        for size, row in zip(reference_voxels.tolist(), overlap, strict=True)
    ]
    union = dice_from_counts(int(reference_voxels.sum()), int(prediction_voxels.sum()), int(overlap.sum()))
    return NoduleDice(
        per_nodule=tuple(float(d) for d in per_nodule),
        found=tuple(bool(row.any()) for row in overlap),
        false_positives=int((overlap.sum(axis=0) == 0).sum()),
        union=union,
    )


def _hits(points: FloatArray, centres: FloatArray, diameters_mm: FloatArray) -> Array:
    """(K, N) bool: candidate k lies within nodule n's radius."""
    squared = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=-1)
    inside: Array = squared < (diameters_mm[None, :] / 2) ** 2
    return inside
