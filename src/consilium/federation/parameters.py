"""What a model is to the federation: named arrays, their schema, and the digest that names their content."""

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from consilium.errors import ConfigurationError
from consilium.types import Array

Parameters: TypeAlias = dict[str, Array]
"""Canonical name -> array; convolutions are laid out (out, in, z, y, x). Read-only users take a Mapping."""

DTYPES: dict[str, np.dtype[np.floating]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
"""The kinds of number that may travel, always little-endian."""

MAX_NAME_LENGTH = 200
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorSpec:
    """Shape and kind of number of one array."""

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"tensor: dtype must be one of {sorted(DTYPES)}; found {self.dtype!r}.")
        if len(self.shape) > MAX_DIMENSIONS or any(n < 0 for n in self.shape):
            raise ConfigurationError(
                f"tensor: at most {MAX_DIMENSIONS} lengths, none negative; found {self.shape}."
            )

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements alone."""
        return self.size * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Schema:
    """Names, shapes and kinds of number of a model; sorted by name, so that equal models have equal
    schemas.
    """

    tensors: tuple[tuple[str, TensorSpec], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.tensors]
        if names != sorted(set(names)):
            raise ConfigurationError("schema: names must be unique and sorted. Build it with Schema.of().")
        wrong = [n for n in names if not n or len(n) > MAX_NAME_LENGTH or not n.isprintable()]
        if wrong:
            raise ConfigurationError(
                f"schema: names are 1 to {MAX_NAME_LENGTH} printable characters; found {wrong[0]!r}."
            )

    @classmethod
    def of(cls, parameters: Mapping[str, Array]) -> "Schema":
        """The schema of a model.

        Raises:
            ConfigurationError: If an array is not of floating numbers (counters and indices do not travel).
        """
        arrays = ((name, parameters[name]) for name in sorted(parameters))
        return cls(tuple((name, TensorSpec(array.shape, array.dtype.name)) for name, array in arrays))

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> TensorSpec:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return dict(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, without names or headers."""
        return sum(spec.nbytes for _, spec in self.tensors)

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and kinds, as 64 hexadecimal digits."""
        text = "\n".join(f"{name} {spec.dtype} {spec.shape}" for name, spec in self.tensors)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_dtype(self, dtype: str | None) -> "Schema":
        """The same names and shapes with every array of kind ``dtype`` (unchanged for None)."""
        if dtype is None:
            return self
        return Schema(tuple((name, TensorSpec(spec.shape, dtype)) for name, spec in self.tensors))

    def without(self, patterns: Iterable[str]) -> "Schema":
        """What of it travels: names that match none of the patterns, see `split_local`."""
        patterns = tuple(patterns)
        return Schema(tuple(item for item in self.tensors if not _stays(item[0], patterns)))

    def find_difference(self, found: "Schema") -> str | None:
        """What differs in ``found``, in words; None if nothing does."""
        wanted, given = dict(self.tensors), dict(found.tensors)
        for name in sorted(wanted.keys() | given.keys()):
            if name not in given:
                return f"{name} is missing"
            if name not in wanted:
                return f"{name} is not part of the model"
            if wanted[name] != given[name]:
                a, b = wanted[name], given[name]
                return f"{name} must be {a.dtype} {a.shape}; found {b.dtype} {b.shape}"
        return None


def compute_digest(parameters: Mapping[str, Array]) -> str:
    """SHA-256 over names, kinds, shapes and little-endian bytes in order of name: 64 hexadecimal digits.

    Equal content gives equal digests on every machine; -0.0 and 0.0 differ.
    """
    running = RunningDigest()
    for name in sorted(parameters):
        running.add(name, parameters[name])
    return running.hexdigest()


class RunningDigest:
    """`compute_digest` of arrays that are seen once, in order of name."""

    def __init__(self) -> None:
        self._content = hashlib.sha256()
        self._last = ""
        self.in_order = True

    def add(self, name: str, array: Array) -> None:
        """See one array; ``in_order`` tells whether all names came in order so far."""
        self.in_order = self.in_order and name > self._last
        self._last = name
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        self._content.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        self._content.update(little.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The digest of what was seen; only meaningful while ``in_order``."""
        return self._content.hexdigest()


def split_local(parameters: Mapping[str, Array], patterns: Iterable[str]) -> tuple[Parameters, Parameters]:
    """Part a model into what travels and what stays at the site.

    Args:
        parameters: The whole model.
        patterns: Shell patterns of names that never travel, e.g. ``"*.norm.*"``.

    Returns:
        (travelling, local); their union is the model.
    """
    patterns = tuple(patterns)
    local = {n: a for n, a in parameters.items() if _stays(n, patterns)}
    return {n: a for n, a in parameters.items() if n not in local}, local


def _stays(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
