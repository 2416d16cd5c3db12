"""Which features stay the same when another reader draws the contour, or when it changes a little."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import f as f_distribution

from consilium.errors import ConfigurationError
from consilium.geometry.crop import Box
from consilium.radiomics.table import FeatureRow
from consilium.types import FloatArray, Mask, Triple

GRADES = ((0.9, "excellent"), (0.75, "good"), (0.5, "moderate"))
"""Of the lower end of the interval (Koo and Li 2016); below the last is ``"poor"``."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One intraclass correlation with its interval.

    Attributes:
        value: The coefficient; NaN if it cannot be computed.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def grade(self) -> str:
        """``"excellent"``, ``"good"``, ``"moderate"`` or ``"poor"`` by the interval's lower end."""
        if np.isnan(self.low):
            return "unknown"
        return next((name for bound, name in GRADES if self.low >= bound), "poor")


@dataclass(frozen=True, kw_only=True)
class IntraclassCorrelation:
    """Agreement of single readings under three models.

    Attributes:
        subjects: Number of things measured.
        readers: Readings of each.
        icc_1: ICC(1,1): readers differ from subject to subject, as in LIDC, where reader 1 is nobody in
            particular.
        icc_2: ICC(2,1): the same readers read everything and stand for others; absolute agreement.
        icc_3: ICC(3,1): the same readers, who stand for themselves; consistency.
    """

    subjects: int
    readers: int
    icc_1: Agreement
    icc_2: Agreement
    icc_3: Agreement


def compute_icc(readings: FloatArray, *, confidence: float = 0.95) -> IntraclassCorrelation:
    """Intraclass correlations of a complete table.

    Args:
        readings: (subjects, readers), no gaps.
        confidence: In (0, 1).

    Returns:
        The coefficients; NaN for fewer than two subjects or readers, for gaps, and where everything is equal.

    Raises:
        ConfigurationError: If the table has not two axes, or the confidence lies outside (0, 1).

    Source:
        Shrout and Fleiss 1979, Psychol Bull 86:420; intervals after McGraw and Wong 1996,
        Psychol Methods 1:30.
    """
    if readings.ndim != 2 or not 0 < confidence < 1:
        raise ConfigurationError(
            f"compute_icc: needs (subjects, readers) and a confidence in (0, 1); found {readings.shape} and "
            f"{confidence}."
        )
    n, k = readings.shape
    nothing = Agreement(value=float("nan"), low=float("nan"), high=float("nan"))
    if n < 2 or k < 2 or not np.isfinite(readings).all() or np.ptp(readings) == 0:
        return IntraclassCorrelation(subjects=n, readers=k, icc_1=nothing, icc_2=nothing, icc_3=nothing)
    mean = readings.mean()
    of_subjects = k * ((readings.mean(axis=1) - mean) ** 2).sum()
    of_readers = n * ((readings.mean(axis=0) - mean) ** 2).sum()
    total = ((readings - mean) ** 2).sum()
    rows = of_subjects / (n - 1)
    columns = of_readers / (k - 1)
    within = (total - of_subjects) / (n * (k - 1))
    error = max((total - of_subjects - of_readers) / ((n - 1) * (k - 1)), 0.0)
    alpha = (1 - confidence) / 2
    return IntraclassCorrelation(
        subjects=n,
        readers=k,
        icc_1=_one_way(rows, within, n - 1, n * (k - 1), k, alpha),
        icc_2=_two_way(rows, columns, error, (n, k), alpha),
        icc_3=_one_way(rows, error, n - 1, (n - 1) * (k - 1), k, alpha),
    )


def _one_way(above: float, below: float, d1: int, d2: int, k: int, alpha: float) -> Agreement:
    """(F − 1) / (F + k − 1) and its exact interval; 1 where readings do not differ at all."""
    if below <= 0:
        return Agreement(value=1.0, low=1.0, high=1.0)
    ratio = above / below
    low = ratio / f_distribution.ppf(1 - alpha, d1, d2)
    high = ratio * f_distribution.ppf(1 - alpha, d2, d1)
    value, low, high = (float((q - 1) / (q + k - 1)) for q in (ratio, low, high))
    return Agreement(value=value, low=low, high=high)


def _two_way(rows: float, columns: float, error: float, shape: tuple[int, int], alpha: float) -> Agreement:
    """ICC(2,1) with the interval by Satterthwaite's degrees of freedom."""
    n, k = shape
    value = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    if value >= 1:
        return Agreement(value=1.0, low=1.0, high=1.0)
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    below = (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    freedom = (a * columns + b * error) ** 2 / below if below > 0 else float(n - 1)
    upper = f_distribution.ppf(1 - alpha, n - 1, freedom)
    lower = f_distribution.ppf(1 - alpha, freedom, n - 1)
    noise = k * columns + (k * n - k - n) * error
    low = n * (rows - upper * error) / (upper * noise + n * rows)
    high = n * (lower * rows - error) / (noise + n * lower * rows)
    return Agreement(value=float(value), low=float(low), high=float(high))


def perturb_contour(
    mask: Mask,
    spacing_zyx_mm: Triple,
    rng: np.random.Generator,
    *,
    amplitude_mm: float = 1.0,
    correlation_mm: float = 5.0,
) -> Mask:
    """Move a contour in and out by a smooth random distance, as another hand would.

    Args:
        mask: (Z, Y, X) bool.
        spacing_zyx_mm: Voxel spacing.
        rng: Generator.
        amplitude_mm: Standard deviation of the distance by which the surface moves, ≥ 0.
        correlation_mm: Length over which neighbouring places move together (sigma of the smoothing).

    Returns:
        A mask of the same shape; the same one for amplitude 0; never empty if the given one is not.

    Raises:
        ConfigurationError: If the amplitude is negative or the length not positive.
    """
    if not (np.isfinite(amplitude_mm) and amplitude_mm >= 0 and correlation_mm > 0):
        raise ConfigurationError(
            f"perturb_contour: amplitude_mm must be ≥ 0 and correlation_mm > 0; found {amplitude_mm} and "
            f"{correlation_mm}."
        )
    box = Box.around(mask)
    changed = mask.copy()
    if box is None or amplitude_mm == 0:
        return changed
    z, y, x = (int(np.ceil(4 * amplitude_mm / s)) + 1 for s in spacing_zyx_mm)
    cut = box.grown((z, y, x)).clipped((mask.shape[0], mask.shape[1], mask.shape[2])).slices()
    signed = _signed_distance(mask[cut], spacing_zyx_mm)
    sigma = [correlation_mm / s for s in spacing_zyx_mm]
    noise = ndimage.gaussian_filter(rng.standard_normal(signed.shape), sigma, mode="wrap")
    moved = signed + _unit(noise, rng) * amplitude_mm > 0
    changed[cut] = moved if moved.any() else signed == signed.max()
    return changed


def _unit(noise: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Scaled to the standard deviation 1; where smoothing left nothing, one number for the whole field."""
    spread = float(noise.std())
    if spread < 1e-6:
        return np.full(noise.shape, rng.standard_normal())
    scaled: FloatArray = noise / spread
    return scaled


def _signed_distance(mask: Mask, spacing_zyx_mm: Triple) -> FloatArray:
    """Distance in mm to the surface between voxels: positive inside, negative outside, never 0."""
    padded = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(padded, sampling=spacing_zyx_mm)
    outside = ndimage.distance_transform_edt(~padded, sampling=spacing_zyx_mm)
    half = min(spacing_zyx_mm) / 2
    signed = np.where(padded, inside - half, half - outside)
    cut: FloatArray = signed[1:-1, 1:-1, 1:-1]
    return cut


@dataclass(frozen=True, kw_only=True)
class FeatureStability:
    """How well one feature of one structure is reproduced.

    Attributes:
        structure: Name.
        tag: The feature.
        icc: Intraclass correlations over the subjects that every reading covers.
        variation: Median over subjects of the coefficient of variation (standard deviation / |mean|).
    """

    structure: str
    tag: str
    icc: IntraclassCorrelation
    variation: float


def compare_readers(
    rows: Iterable[FeatureRow], *, confidence: float = 0.95, leave_out: Sequence[str] = ("prediction",)
) -> list[FeatureStability]:
    """Stability of every feature across readers.

    Only readers of their own count (no derived contours). The table has no gaps: of the numbers of readings
    k that at least two subjects have, the one that leaves the most readings beyond the first, n·(k − 1), is
    taken, with k readings of each of the n subjects. ICC(2,1) and ICC(3,1) presume that a reader's name means
    the same person in every case; where it does not, read ICC(1,1).

    Args:
        rows: A feature table.
        confidence: Of the intervals.
        leave_out: Readers that do not count.

    Returns:
        One entry per structure and feature that two subjects have from two readers; empty if there is none.
    """
    readings: dict[tuple[str, str], dict[tuple[str, str, int], dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        key = row.contour
        if not key.derived and key.reader not in leave_out:
            readings[key.structure, row.feature.tag][key.subject][key.reader] = row.feature.value
    found = []
    for (structure, tag), subjects in readings.items():
        table = _complete(list(subjects.values()))
        if table is not None:
            found.append(_stability(structure, tag, table, confidence))
    return found


def compare_perturbations(
    structure: str, subjects: Sequence[Sequence[Mapping[str, float]]], *, confidence: float = 0.95
) -> list[FeatureStability]:
    """Stability of every feature under changes of the contour.

    Args:
        structure: Name for the result.
        subjects: Per subject the features (tag → value) of its contour and of each changed one; the same
            number for all.
        confidence: Of the intervals.

    Returns:
        One entry per feature; its ICC needs two subjects and is NaN with one, the variation needs one.
    """
    tags = list(subjects[0][0]) if subjects and subjects[0] else []
    tables = {tag: np.array([[values[tag] for values in subject] for subject in subjects]) for tag in tags}
    return [_stability(structure, tag, table, confidence) for tag, table in tables.items()]


def measure_perturbations(
    mask: Mask,
    spacing_zyx_mm: Triple,
    rng: np.random.Generator,
    compute: Callable[[Mask], Mapping[str, float]],
    *,
    repeats: int = 10,
    amplitude_mm: float = 1.0,
) -> list[Mapping[str, float]]:
    """Features of a contour and of ``repeats`` slightly changed ones, for `compare_perturbations`."""
    changed = (perturb_contour(mask, spacing_zyx_mm, rng, amplitude_mm=amplitude_mm) for _ in range(repeats))
    return [compute(mask), *(compute(other) for other in changed)]


def _complete(subjects: list[dict[str, float]]) -> FloatArray | None:
    """(subjects, readings) without gaps, as `compare_readers` says; None with fewer than two of each."""
    counts = [sum(np.isfinite(list(values.values()))) for values in subjects]
    sizes = {k: sum(count >= k for count in counts) for k in range(2, max(counts, default=0) + 1)}
    possible = [k for k, n in sizes.items() if n >= 2]
    if not possible:
        return None
    wanted = max(possible, key=lambda k: (sizes[k] * (k - 1), k))
    rows = [
        sorted((reader, v) for reader, v in values.items() if np.isfinite(v))
        for values, count in zip(subjects, counts, strict=True)
        if count >= wanted
    ]
    return np.array([[v for _, v in row[:wanted]] for row in rows])


def _stability(structure: str, tag: str, table: FloatArray, confidence: float) -> FeatureStability:
    mean, spread = np.abs(table.mean(axis=1)), table.std(axis=1, ddof=1 if table.shape[1] > 1 else 0)
    variation = np.divide(spread, mean, out=np.full(len(mean), np.nan), where=mean > 0)
    known = variation[np.isfinite(variation)]
    return FeatureStability(
        structure=structure,
        tag=tag,
        icc=compute_icc(table, confidence=confidence),
        variation=float(np.median(known)) if len(known) else float("nan"),
    )


STABILITY_COLUMNS = (
    "compared",
    "structure",
    "tag",
    "subjects",
    "readings",
    *(f"icc_{model}{end}" for model in (1, 2, 3) for end in ("", "_low", "_high")),
    "grade",
    "variation",
)


def stability_rows(compared: str, entries: Iterable[FeatureStability]) -> Iterator[dict[str, object]]:
    """Rows of `STABILITY_COLUMNS`; the grade is that of ICC(1,1), what is not known is an empty cell.

    Args:
        compared: What differed: ``"readers"`` or ``"contour changes"``.
        entries: Results.
    """
    for entry in entries:
        row: dict[str, object] = {
            "compared": compared,
            "structure": entry.structure,
            "tag": entry.tag,
            "subjects": entry.icc.subjects,
            "readings": entry.icc.readers,
            "grade": entry.icc.icc_1.grade,
            "variation": _cell(entry.variation),
        }
        for model, icc in ((1, entry.icc.icc_1), (2, entry.icc.icc_2), (3, entry.icc.icc_3)):
            ends = (("", icc.value), ("_low", icc.low), ("_high", icc.high))
            row |= {f"icc_{model}{end}": _cell(value) for end, value in ends}
        yield row


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
