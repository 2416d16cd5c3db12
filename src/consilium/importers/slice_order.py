"""From the positions of slices to a regular grid: order, spacing, gantry tilt, gaps."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from consilium.cases.case import Finding
from consilium.errors import RefusedInput
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.types import FloatArray, Shape, Triple

POSITION_TOLERANCE_MM = 0.01
"""A slice may lie this far from where the regular grid has it."""
COSINE_TOLERANCE = 1e-4
DUPLICATE_DISTANCE_MM = 0.01
MAX_GAP_MM = 20.0
"""A wider gap is not filled: what lies in it cannot be told from its ends."""
MAX_LISTED = 6

Orientation = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class SliceSource:
    """Where one slice of the grid comes from: stored slices ``lower`` and ``upper``, mixed by ``weight``.

    A stored slice has ``lower == upper``. Else its values are ``(1 - weight) * lower + weight * upper``.
    """

    lower: int
    upper: int
    weight: float = 0.0

    @property
    def is_stored(self) -> bool:
        """Whether the slice was acquired, not interpolated."""
        return self.lower == self.upper


@dataclass(frozen=True)
class SlicePlan:
    """The grid of a series, and for each of its slices the stored slices it comes from."""

    grid: Grid
    sources: tuple[SliceSource, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plane:
    """What the slices of a series have in common.

    Args:
        orientation: Image Orientation (Patient): the row's, then the column's direction cosines.
        pixel_spacing_mm: Between rows, then between columns.
        shape_yx: Rows and columns.
        thickness_mm: Stands in for the spacing where there is but one slice; NaN if not known.
    """

    orientation: Orientation
    pixel_spacing_mm: tuple[float, float]
    shape_yx: tuple[int, int]
    thickness_mm: float

    @property
    def normal_lps(self) -> FloatArray:
        """Row direction × column direction, of length 1."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        unit: FloatArray = normal / np.linalg.norm(normal)
        return unit

    def check(self, where: str) -> None:
        """Refuse directions that are not of length 1 at right angles, and spacing that is not positive."""
        row, column = np.asarray(self.orientation[:3]), np.asarray(self.orientation[3:])
        off = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
        if off > 20 * COSINE_TOLERANCE:
            raise RefusedInput(
                where,
                "ImageOrientationPatient must hold two directions of length 1 at right angles; found "
                f"{self.orientation}.",
                "Export the series again.",
            )
        if min(self.pixel_spacing_mm) <= 0:
            raise RefusedInput(
                where, f"PixelSpacing must be positive; found {self.pixel_spacing_mm} mm.", "Export it again."
            )


def order_slices(positions_lps_mm: FloatArray, plane: Plane) -> list[int]:
    """The order of slices (N, 3) along the plane's normal."""
    return [int(k) for k in np.argsort(positions_lps_mm @ plane.normal_lps, kind="stable")]


def plan_slices(
    positions_lps_mm: FloatArray, plane: Plane, *, where: str, allow_missing_slices: bool = False
) -> SlicePlan:
    """The regular grid on which the slices lie.

    The affine's step runs from the first to the last stored slice, so that gantry tilt gives a sheared grid.

    Args:
        positions_lps_mm: (N, 3) in the order of `order_slices`.
        plane: Of all of them.
        where: How messages call the series.
        allow_missing_slices: Fill gaps (and even out unequal spacing) by linear interpolation between the
            neighbouring stored slices at their true positions, and say so in a finding. The spacing is then
            the most frequent one; nothing is averaged.

    Raises:
        RefusedInput: If two slices lie at one position, the slices are not on a line, or they are not equally
            spaced and may not be filled in.
    """
    if len(positions_lps_mm) == 1:
        return _plan_single(positions_lps_mm[0], plane, where)
    heights = positions_lps_mm @ plane.normal_lps
    gaps = np.diff(heights)
    _check_distinct(gaps, where)
    step = (positions_lps_mm[-1] - positions_lps_mm[0]) / (heights[-1] - heights[0])
    line = positions_lps_mm[0] + np.outer(heights - heights[0], step)
    _check_on_a_line(positions_lps_mm - line, where)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() <= POSITION_TOLERANCE_MM:
        spacing = float(heights[-1] - heights[0]) / (len(heights) - 1)
        sources = tuple(SliceSource(k, k) for k in range(len(heights)))
        return SlicePlan(_grid(positions_lps_mm[0], step * spacing, plane, len(heights)), sources)
    if not allow_missing_slices:
        raise _uneven(gaps, where)
    return _plan_filled(positions_lps_mm[0], heights, step, plane, where)


def _plan_single(position_lps_mm: FloatArray, plane: Plane, where: str) -> SlicePlan:
    if not plane.thickness_mm > 0:
        raise RefusedInput(
            where,
            "a single slice must say its thickness (SliceThickness) to have a volume; it does not.",
            "Import the whole series.",
        )
    finding = Finding(
        code="single-slice",
        message=f"the series has one slice; its thickness of {plane.thickness_mm:g} mm is the spacing.",
        remedy="Check whether the export is complete.",
    )
    grid = _grid(position_lps_mm, plane.normal_lps * plane.thickness_mm, plane, 1)
    return SlicePlan(grid, (SliceSource(0, 0),), (finding,))


def _plan_filled(
    origin_lps_mm: FloatArray, heights: FloatArray, step: FloatArray, plane: Plane, where: str
) -> SlicePlan:
    gaps = np.diff(heights)
    if gaps.max() > MAX_GAP_MM:
        raise RefusedInput(
            where,
            f"a gap must be at most {MAX_GAP_MM:g} mm to be filled; found "
            f"{_listed(gaps[gaps > MAX_GAP_MM])} mm.",
            "Export the missing slices, or export the two parts as series of their own.",
        )
    spacing = _regular_spacing(heights, _most_frequent(gaps))
    count = int(np.floor((heights[-1] - heights[0] + POSITION_TOLERANCE_MM) / spacing)) + 1
    targets = heights[0] + spacing * np.arange(count)
    sources = []
    for target in targets:
        near = int(np.abs(heights - target).argmin())
        if abs(heights[near] - target) <= POSITION_TOLERANCE_MM:
            sources.append(SliceSource(near, near))
            continue
        upper = int(np.searchsorted(heights, target))
        lower = upper - 1
        weight = float((target - heights[lower]) / (heights[upper] - heights[lower]))
        sources.append(SliceSource(lower, upper, weight))
    filled = [k for k, source in enumerate(sources) if not source.is_stored]
    finding = Finding(
        code="interpolated-slices",
        message=f"{len(filled)} of {count} slices were missing or off the regular spacing of "
        f"{spacing:.3f} mm and are interpolated from their neighbours: slices {_ranges(filled)} (from 1); "
        f"widest gap {gaps.max():.2f} mm.",
        remedy="Export the series again; do not judge contours on these slices.",
    )
    return SlicePlan(_grid(origin_lps_mm, step * spacing, plane, count), tuple(sources), (finding,))


def _regular_spacing(heights: FloatArray, usual: float) -> float:
    """``usual``, freed of its rounding where every slice lies on one regular grid with some left out."""
    steps = np.rint((heights - heights[0]) / usual)
    spacing = float(heights[-1] - heights[0]) / float(steps[-1])
    fits = np.abs(heights - heights[0] - steps * spacing).max() <= POSITION_TOLERANCE_MM
    return spacing if fits else usual


def _grid(origin_lps_mm: FloatArray, step_lps_mm: FloatArray, plane: Plane, count: int) -> Grid:
    shape: Shape = (count, *plane.shape_yx)
    affine = Affine.from_dicom(
        position_lps_mm=_triple(origin_lps_mm),
        orientation=plane.orientation,
        pixel_spacing_mm=plane.pixel_spacing_mm,
        slice_step_lps_mm=_triple(step_lps_mm),
    )
    return Grid(shape, affine)


def _triple(vector: FloatArray) -> Triple:
    x, y, z = (float(v) for v in vector)
    return x, y, z


def _check_distinct(gaps: FloatArray, where: str) -> None:
    same = np.flatnonzero(gaps < DUPLICATE_DISTANCE_MM)
    if same.size:
        raise RefusedInput(
            where,
            f"every slice must have a position of its own; {same.size} pairs share one, the first being "
            f"slices {same[0] + 1} and {same[0] + 2} of {len(gaps) + 1} in order of position.",
            "The series holds copies, or several phases or reconstructions: keep one of each.",
            code="doubled-positions",
        )


def _check_on_a_line(offsets_lps_mm: FloatArray, where: str) -> None:
    distance = np.linalg.norm(offsets_lps_mm, axis=1)
    if distance.max() > POSITION_TOLERANCE_MM:
        worst = int(distance.argmax())
        raise RefusedInput(
            where,
            f"slice positions must lie on a line within {POSITION_TOLERANCE_MM} mm; slice {worst + 1} of "
            f"{len(distance)} lies {distance[worst]:.2f} mm beside it.",
            "The series joins several reconstructions: export each as a series of its own.",
            code="mixed-slices",
        )


def _uneven(gaps: FloatArray, where: str) -> RefusedInput:
    usual = _most_frequent(gaps)
    odd = np.flatnonzero(np.abs(gaps - usual) > POSITION_TOLERANCE_MM)
    first = int(odd[0]) if odd.size else int(np.abs(gaps - usual).argmax())
    return RefusedInput(
        where,
        f"slices must be equally spaced within {POSITION_TOLERANCE_MM} mm; found gaps of {usual:.2f} and "
        f"{_listed(gaps[odd] if odd.size else gaps)} mm, the first between slices {first + 1} and "
        f"{first + 2} of {len(gaps) + 1} in order of position.",
        "A slice is probably missing: export the series again, or import with --allow-missing-slices.",
        code="uneven-slices",
    )


def _most_frequent(gaps: FloatArray) -> float:
    """The gap that occurs most often within the tolerance, the smaller one on a tie; unrounded."""
    keys = np.rint(gaps / POSITION_TOLERANCE_MM).astype(int)
    counts = Counter(keys.tolist())
    key = min(counts, key=lambda k: (-counts[k], k))
    return float(np.median(gaps[keys == key]))


def _listed(values: FloatArray) -> str:
    distinct = sorted({f"{v:.2f}" for v in values}, key=float)
    more = f" (and {len(distinct) - MAX_LISTED} other values)" if len(distinct) > MAX_LISTED else ""
    return ", ".join(distinct[:MAX_LISTED]) + more


def _ranges(numbers: list[int]) -> str:
    """``[3, 4, 5, 9]`` -> ``"4-6, 10"`` (counted from 1)."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in runs]
    more = f" and {len(texts) - MAX_LISTED} more places" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
