"""Self-configuration without case data: every site sends small histograms with a minimum count; all derive
one plan.

Bins are the same everywhere and known beforehand, so merging is adding. A bin holds a number of cases (or of
voxels' parts per million), never a case.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from consilium.errors import ConfigurationError, DataError
from consilium.types import Array, FloatArray

Plan = TypeVar("Plan")
MINIMUM_CASES = 5
"""A site with fewer cases sends nothing; a bin with fewer cases is joined to its neighbour."""


@dataclass(frozen=True)
class Axis:
    """Fixed bins of one quantity.

    Args:
        low: Lower edge of the first bin, above 0 if ``logarithmic``.
        high: Upper edge of the last bin.
        bins: How many.
        logarithmic: Bins of equal ratio instead of equal width.
    """

    low: float
    high: float
    bins: int
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (self.low < self.high and 1 <= self.bins <= 10_000) or (self.logarithmic and self.low <= 0):
            raise ConfigurationError(f"axis: must run upwards in 1 to 10000 bins; found {self}.")

    @property
    def edges(self) -> FloatArray:
        """``bins + 1`` edges."""
        if self.logarithmic:
            return np.geomspace(self.low, self.high, self.bins + 1)
        return np.linspace(self.low, self.high, self.bins + 1)

    def find_bins(self, values: npt.ArrayLike) -> Array:
        """Bin of each value; what lies outside goes to the first or last bin."""
        return np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, self.bins - 1)


AXES: dict[str, Axis] = {
    "spacing_z_mm": Axis(0.1, 20.0, 400, logarithmic=True),
    "spacing_y_mm": Axis(0.1, 20.0, 400, logarithmic=True),
    "spacing_x_mm": Axis(0.1, 20.0, 400, logarithmic=True),
    "size_z_voxels": Axis(1, 4096, 400, logarithmic=True),
    "size_y_voxels": Axis(1, 4096, 400, logarithmic=True),
    "size_x_voxels": Axis(1, 4096, 400, logarithmic=True),
    "intensity_hu": Axis(-1100.0, 3100.0, 840),
}
"""What a plan is made from: grids case by case, intensities voxel by voxel inside the structures."""

PER_VOXEL = ("intensity_hu",)
PARTS = 10**6
"""A site's voxel histogram is sent as parts of a million per bin, so that it does not tell volumes."""


@dataclass(frozen=True)
class Sketch:
    """What one site sends, or several sites' together.

    Args:
        cases: Number of cases.
        counts: Quantity -> count in every bin (whole numbers). Per-case quantities sum to ``cases``;
            per-voxel ones to ``cases`` times a million.
    """

    cases: int
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.cases) is not int or self.cases < MINIMUM_CASES:
            raise DataError(f"sketch: must cover at least {MINIMUM_CASES} cases; found {self.cases!r}.")
        if set(self.counts) != set(AXES):
            raise DataError(f"sketch: must hold exactly {sorted(AXES)}.")
        for name, counts in self.counts.items():
            whole = all(type(n) is int and n >= 0 for n in counts)
            total = self.cases * (PARTS if name in PER_VOXEL else 1)
            if len(counts) != AXES[name].bins or not whole or sum(counts) != total:
                raise DataError(
                    f"sketch: {name} must be {AXES[name].bins} counts that sum to {total}; it is not."
                )

    def quantile(self, name: str, fraction: float) -> float:
        """The value below which ``fraction`` of the cases (or voxels) lie, to within half a bin."""
        axis, counts = AXES[name], np.asarray(self.counts[name], np.float64)
        total = np.cumsum(counts)
        bin_number = int(np.searchsorted(total, fraction * total[-1], side="left"))
        bin_number = min(bin_number, axis.bins - 1)
        low, high = axis.edges[bin_number], axis.edges[bin_number + 1]
        return float(math.sqrt(low * high) if axis.logarithmic else (low + high) / 2)

    def moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation, from the middles of the bins."""
        axis, counts = AXES[name], np.asarray(self.counts[name], np.float64)
        middles = (axis.edges[:-1] + axis.edges[1:]) / 2
        mean = float(np.sum(middles * counts) / np.sum(counts))
        return mean, math.sqrt(float(np.sum(counts * (middles - mean) ** 2) / np.sum(counts)))

    def encode(self) -> bytes:
        """As JSON, with the empty bins left out."""
        filled = {
            name: {str(i): n for i, n in enumerate(counts) if n} for name, counts in self.counts.items()
        }
        return json.dumps({"cases": self.cases, "counts": filled}, sort_keys=True).encode()


def build_sketch(per_case: Mapping[str, Iterable[float]], intensities_hu: Iterable[Array]) -> Sketch:
    """A site's sketch.

    Args:
        per_case: Quantity -> one value per case, for every per-case axis.
        intensities_hu: For every case, a sample of the intensities inside its structures; each case weighs
            the same.

    Raises:
        DataError: If there are fewer than `MINIMUM_CASES` cases: then nothing may be sent.
    """
    counts: dict[str, tuple[int, ...]] = {}
    cases = 0
    for name, axis in AXES.items():
        if name in PER_VOXEL:
            continue
        values = np.asarray(list(per_case[name]), np.float64)
        cases = len(values)
        if cases < MINIMUM_CASES:
            raise DataError(
                f"sketch: a site with fewer than {MINIMUM_CASES} cases sends none; found {cases}."
            )
        raw = np.bincount(axis.find_bins(values), minlength=axis.bins)
        counts[name] = tuple(int(n) for n in join_small_bins(raw))
    parts = np.zeros(AXES["intensity_hu"].bins, np.int64)
    for values in intensities_hu:
        parts += _to_parts(
            np.bincount(AXES["intensity_hu"].find_bins(np.ravel(values)), minlength=len(parts))
        )
    counts["intensity_hu"] = tuple(int(n) for n in parts)
    return Sketch(cases, counts)


def join_small_bins(counts: Array) -> Array:
    """Move counts so that no bin holds 1 to 4 cases: what is too few goes to the middle case of its
    neighbours.

    Walking upwards, cases are gathered until there are `MINIMUM_CASES`, and put where the middle one of them
    was; what is left at the end joins the last group.
    """
    joined = np.zeros_like(counts)
    bins = np.repeat(np.arange(len(counts)), counts)
    groups = max(1, len(bins) // MINIMUM_CASES)
    for group in np.array_split(bins, groups):
        if len(group):
            joined[group[len(group) // 2]] += len(group)
    return joined


def _to_parts(counts: Array) -> Array:
    """Counts as whole parts of a million that sum to a million; the largest remainders are rounded up."""
    if not counts.sum():
        raise DataError("sketch: every case needs voxels inside its structures; one has none.")
    exact = counts * (PARTS / counts.sum())
    parts: Array = np.floor(exact).astype(np.int64)
    missing = PARTS - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:missing]] += 1
    return parts


def merge_sketches(sketches: Iterable[Sketch]) -> Sketch:
    """All sites' sketches as one; the order does not matter.

    Raises:
        DataError: If there is none.
    """
    everyone = list(sketches)
    if not everyone:
        raise DataError("sketch: at least one site must send one; none did.")
    counts = {
        name: tuple(int(n) for n in np.sum([np.asarray(s.counts[name], np.int64) for s in everyone], axis=0))
        for name in AXES
    }
    return Sketch(sum(s.cases for s in everyone), counts)


def decode_sketch(content: bytes) -> Sketch:
    """A sketch as received.

    Raises:
        DataError: If it is not exactly one.
    """
    from consilium.federation.tensors import parse_strict_json

    table: dict[str, Any] = parse_strict_json(content)
    try:
        counts = {}
        for name, filled in table["counts"].items():
            row = [0] * AXES[name].bins
            for index, count in filled.items():
                row[int(index)] = count
            counts[name] = tuple(row)
        return Sketch(table["cases"], counts)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as fault:
        raise DataError("sketch: must hold cases and counts by bin; it does not.") from fault


def derive_plan(sketches: Iterable[Sketch], derive: Callable[[Sketch], Plan]) -> Plan:
    """The plan that every site derives from the same sketches: ``derive`` is training's own function."""
    return derive(merge_sketches(sketches))
