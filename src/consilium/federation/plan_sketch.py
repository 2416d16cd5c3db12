"""Self-configuration without case data: every site sends small histograms with a minimum count; all derive
one plan.

Bins are the same everywhere and known beforehand, so merging is adding. A bin holds a number of cases (or of
voxels' parts per million), never a case.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.errors import ConfigurationError, DataError
from consilium.federation.settings import STRUCTURE
from consilium.federation.tensors import parse_strict_json
from consilium.types import Array, FloatArray

MINIMUM_CASES = 5
"""A site with fewer cases sends nothing; a bin with fewer cases is joined to its neighbour, a structure that
fewer cases know is left out."""

MODALITIES = ("CT", "MR", "PT", "OTHER")


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
    **{f"spacing_{axis}_mm": Axis(0.005, 20.005, 2000) for axis in "zyx"},
    **{f"extent_{axis}_mm": Axis(1.0, 5000.0, 400, logarithmic=True) for axis in "zyx"},
    **{f"kept_{axis}": Axis(0.0, 1.0, 100) for axis in "zyx"},
    "intensity_hu": Axis(-1100.0, 3100.0, 840),
}
"""What a plan is made from: grids and the body's share of each axis case by case, intensities voxel by voxel
inside the structures. The middles of the spacing's bins are whole hundredths of a millimetre."""

PER_VOXEL = ("intensity_hu",)
PARTS = 10**6
"""A site's voxel histogram is sent as parts of a million per bin, so that it does not tell volumes."""

VOLUME = "volume_mm3/"
VOLUME_AXIS = Axis(1.0, 1e8, 400, logarithmic=True)
"""Of every structure's contours; left out where a site has too few of them."""


def find_axis(name: str) -> Axis:
    """The bins of a quantity.

    Raises:
        DataError: If it is none that a sketch may hold.
    """
    if name.startswith(VOLUME) and STRUCTURE.fullmatch(name.removeprefix(VOLUME)):
        return VOLUME_AXIS
    if name not in AXES:
        raise DataError(f"sketch: may hold {', '.join(AXES)} and {VOLUME}NAME; found {name[:80]!r}.")
    return AXES[name]


def may_be_named(structure: str, known: int) -> bool:
    """Whether a sketch may name a structure that so many cases know.

    A name of few cases may be a person's, and every name becomes one of the federation file.
    """
    return known >= MINIMUM_CASES and STRUCTURE.fullmatch(structure) is not None


@dataclass(frozen=True)
class Sketch:
    """What one site sends, or several sites' together.

    Args:
        cases: Number of cases.
        counts: Quantity -> count in every bin (whole numbers). Per-case quantities sum to ``cases``;
            per-voxel ones to ``cases`` times a million; volumes to the number of contours.
        structures: Structure -> number of cases in which it is known, at least `MINIMUM_CASES`.
        modality: Of all images.
    """

    cases: int
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    structures: Mapping[str, int] = field(default_factory=dict)
    modality: str = "CT"

    def __post_init__(self) -> None:
        if type(self.cases) is not int or self.cases < MINIMUM_CASES:
            raise DataError(f"sketch: must cover at least {MINIMUM_CASES} cases; found {self.cases!r}.")
        if not set(AXES) <= set(self.counts):
            raise DataError(f"sketch: must hold {sorted(AXES)}; {sorted(set(AXES) - set(self.counts))} lack.")
        if self.modality not in MODALITIES:
            raise DataError(
                f"sketch: modality must be one of {MODALITIES}; found {str(self.modality)[:20]!r}."
            )
        for name, known in self.structures.items():
            if type(known) is not int or not known <= self.cases or not may_be_named(name, known):
                raise DataError(
                    f"sketch: structures must be known in {MINIMUM_CASES} to {self.cases} cases, under names "
                    f"of letters, digits, space, +, - and _; {name[:80]!r} is not. Sketch the dataset again."
                )
        for name, counts in self.counts.items():
            self._check_counts(name, counts)

    def _check_counts(self, name: str, counts: tuple[int, ...]) -> None:
        axis = find_axis(name)
        low = high = self.cases * (PARTS if name in PER_VOXEL else 1)
        if name.startswith(VOLUME):
            low, high = MINIMUM_CASES, self.structures.get(name.removeprefix(VOLUME), 0)
        whole = all(type(n) is int and n >= 0 for n in counts)
        if len(counts) != axis.bins or not whole or not low <= sum(counts) <= high:
            raise DataError(
                f"sketch: {name} must be {axis.bins} counts that sum to {low} to {high}; it is not."
            )

    def values(self, name: str) -> FloatArray:
        """One value per case (or contour): the middle of its bin; ascending."""
        axis = find_axis(name)
        edges = axis.edges
        middles = np.sqrt(edges[:-1] * edges[1:]) if axis.logarithmic else (edges[:-1] + edges[1:]) / 2
        return np.asarray(np.repeat(middles, self.counts[name]))

    def moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation, from the middles of the bins."""
        edges, counts = find_axis(name).edges, np.asarray(self.counts[name], np.float64)
        middles = (edges[:-1] + edges[1:]) / 2
        mean = float(np.sum(middles * counts) / np.sum(counts))
        return mean, math.sqrt(float(np.sum(counts * (middles - mean) ** 2) / np.sum(counts)))

    def encode(self) -> bytes:
        """As JSON, with the empty bins left out."""
        filled = {
            name: {str(i): n for i, n in enumerate(counts) if n} for name, counts in self.counts.items()
        }
        table = {
            "cases": self.cases,
            "counts": filled,
            "modality": self.modality,
            "structures": dict(self.structures),
        }
        return json.dumps(table, sort_keys=True).encode()


def build_sketch(
    per_case: Mapping[str, Iterable[float]],
    intensities_hu: Iterable[Array],
    *,
    structures: Mapping[str, int] | None = None,
    volumes_mm3: Mapping[str, Sequence[float]] | None = None,
    modality: str = "CT",
) -> Sketch:
    """A site's sketch.

    Args:
        per_case: Quantity -> one value per case, for every per-case axis.
        intensities_hu: For every case, a sample of the intensities inside its structures; each case weighs
            the same.
        structures: Structure -> number of cases in which it is known; those that it may not name are left
            out, see `may_be_named`.
        volumes_mm3: Structure -> volume of every contour; structures with fewer than `MINIMUM_CASES` are
            left out.
        modality: Of all images.

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
    named = {name: known for name, known in (structures or {}).items() if may_be_named(name, known)}
    for name, volumes in (volumes_mm3 or {}).items():
        if name in named and len(volumes) >= MINIMUM_CASES:
            raw = np.bincount(VOLUME_AXIS.find_bins(volumes), minlength=VOLUME_AXIS.bins)
            counts[VOLUME + name] = tuple(int(n) for n in join_small_bins(raw))
    return Sketch(cases, counts, named, modality)


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
    modalities = sorted({s.modality for s in everyone})
    if len(modalities) > 1:
        raise DataError(f"sketch: all sites must have images of one kind; found {', '.join(modalities)}.")
    counts: dict[str, tuple[int, ...]] = {}
    for name in sorted({name for sketch in everyone for name in sketch.counts}):
        found = [np.asarray(s.counts[name], np.int64) for s in everyone if name in s.counts]
        counts[name] = tuple(int(n) for n in np.sum(found, axis=0))
    structures: dict[str, int] = {}
    for sketch in everyone:
        for name, known in sketch.structures.items():
            structures[name] = structures.get(name, 0) + known
    return Sketch(sum(s.cases for s in everyone), counts, dict(sorted(structures.items())), modalities[0])


def decode_sketch(content: bytes) -> Sketch:
    """A sketch as received.

    Raises:
        DataError: If it is not exactly one.
    """
    table: dict[str, Any] = parse_strict_json(content)
    try:
        counts = {}
        for name, filled in table["counts"].items():
            row = [0] * find_axis(name).bins
            for index, count in filled.items():
                row[int(index)] = count
            counts[name] = tuple(row)
        return Sketch(table["cases"], counts, dict(table["structures"]), table["modality"])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as fault:
        raise DataError("sketch: must hold cases, structures and counts by bin; it does not.") from fault
