"""The weighted mean of many models in fixed point: exact to the bit in any order, in memory that does not
grow.

Floating sums depend on the order of their terms; sums of 64-bit integers do not. Every value becomes a
multiple of a power of two chosen before the round from what all updates are held to, and is multiplied by a
whole weight. Where all contributions are equal byte for byte, the mean is that contribution itself,
untouched by rounding: a federation of one site is local training.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consilium.errors import FederationError
from consilium.federation.parameters import Schema
from consilium.federation.settings import HeadMap
from consilium.types import Array

BLOCK = 2**15
"""Elements converted at a time: temporaries stay in the cache."""

FIXED_BITS = 62
"""A sum of all enrolled weights times the largest possible value stays below 2 to this power."""

LEAST_BOUND = 1e-280
"""So that the unit and its inverse are ordinary numbers."""


@dataclass(frozen=True)
class Part:
    """Rows of one array that are combined over the same sites: a structure's rows, or the shared rest."""

    name: str
    rows: slice
    structure: str | None


def list_parts(schema: Schema, heads: HeadMap) -> list[Part]:
    """Every array whole, or head arrays divided by structure."""
    parts = []
    for name, spec in schema.tensors:
        if name not in heads.tensors:
            parts.append(Part(name, slice(None), None))
            continue
        length = spec.shape[0] if spec.shape else 0
        parts += [Part(name, heads.rows(structure, length), structure) for structure in heads.structures]
    return parts


def choose_exponent(bound: float, total_weight: int) -> int:
    """The power of two that is the unit of the fixed-point sum.

    Args:
        bound: No value is larger than this.
        total_weight: No sum of weights is larger than this.
    """
    _, exponent = math.frexp(max(bound, LEAST_BOUND) * total_weight)
    return exponent - FIXED_BITS


class _Sum:
    """The running sum of one part."""

    def __init__(self, exponent: int) -> None:
        self.exponent = exponent
        self.weight = 0
        self._only: Array | None = None
        self._total: npt.NDArray[np.int64] | None = None

    def add(self, values: Array, weight: int) -> None:
        if self._total is None and self._only is None:
            self._only = np.array(values)
        elif self._total is not None:
            self._accumulate(self._total, values, weight)
        elif self._only is not None and not _same_bytes(self._only, values):
            self._total = np.zeros(self._only.size, np.int64)
            self._accumulate(self._total, self._only, self.weight)
            self._only = None
            self._accumulate(self._total, values, weight)
        self.weight += weight

    def _accumulate(self, total: npt.NDArray[np.int64], values: Array, weight: int) -> None:
        flat = values.reshape(-1)
        unit = math.ldexp(1.0, -self.exponent)
        scaled, fixed = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.int64)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            number, whole = scaled[: block.size], fixed[: block.size]
            # Times a power of two: exact, and several times faster than ldexp.
            np.multiply(block, unit, out=number, dtype=np.float64)
            np.copyto(whole, np.rint(number, out=number), casting="unsafe")
            whole *= weight
            total[start : start + BLOCK] += whole

    def mean(self, like: Array) -> Array:
        """The mean in the shape and kind of ``like``, which is returned where nothing was added."""
        if self._only is not None:
            return self._only
        if self._total is None:
            return like
        mean = np.empty(like.size, like.dtype)
        unit = math.ldexp(1.0, self.exponent)
        for start in range(0, like.size, BLOCK):
            block = self._total[start : start + BLOCK] / self.weight
            block *= unit
            mean[start : start + BLOCK] = block
        return mean.reshape(like.shape)


def _same_bytes(first: Array, second: Array) -> bool:
    one, other = first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8)
    starts = range(0, one.size, BLOCK)
    return all(np.array_equal(one[s : s + BLOCK], other[s : s + BLOCK]) for s in starts)


class WeightedSum:
    """Adds models, each with a weight per structure, and gives their mean array by array.

    Args:
        base: The model at the start of the round: the value of what nobody contributes to, and the centre
            around which every update lies within ``reach``.
        heads: Which rows are combined per structure.
        reach: Largest difference of any element from ``base``.
        total_weight: No sum of weights exceeds it.
    """

    def __init__(
        self, base: Mapping[str, Array], schema: Schema, heads: HeadMap, *, reach: float, total_weight: int
    ) -> None:
        self._base = base
        self._schema = schema
        self._total_weight = total_weight
        self._parts = list_parts(schema, heads)
        self._sums: list[_Sum] = []
        largest = {name: float(np.max(np.abs(base[name]), initial=0.0)) for name in schema}
        for part in self._parts:
            self._sums.append(_Sum(choose_exponent(largest[part.name] + reach, total_weight)))

    def add(
        self, arrays: Iterable[tuple[str, Array]], weight: int, structure_weights: Mapping[str, int]
    ) -> None:
        """Add one model.

        Args:
            arrays: (name, array) of the whole schema.
            weight: For the shared arrays; 0 leaves them alone.
            structure_weights: For the heads; structures that are absent are left alone.

        Raises:
            FederationError: If weights exceed what the sum was made for; nothing may wrap around.
        """
        by_name: dict[str, list[tuple[Part, _Sum]]] = {}
        for part, total in zip(self._parts, self._sums, strict=True):
            by_name.setdefault(part.name, []).append((part, total))
        for name, array in arrays:
            for part, total in by_name[name]:
                share = weight if part.structure is None else structure_weights.get(part.structure, 0)
                if share < 0 or total.weight + share > self._total_weight:
                    raise FederationError(
                        f"sum: weights may reach {self._total_weight}; {total.weight} and {share} do not fit."
                    )
                if share:
                    total.add(array[part.rows] if part.structure is not None else array, share)

    def means(self) -> Iterator[tuple[str, Array]]:
        """The mean of every array, in the order of the schema; each sum is dropped as soon as it is read."""
        waiting = list(zip(self._parts, self._sums, strict=True))
        self._sums = []
        waiting.reverse()
        for name in self._schema:
            base = self._base[name]
            mean = base
            while waiting and waiting[-1][0].name == name:
                part, total = waiting.pop()
                if part.structure is None:
                    mean = total.mean(base)
                else:
                    mean = np.array(mean)
                    mean[part.rows] = total.mean(base[part.rows])
            yield name, mean
