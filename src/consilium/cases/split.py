"""Which cases train and which validate: by patient, balanced over the known structures, repeatable."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Case
from consilium.cases.files import read_json, write_json
from consilium.errors import ConfigurationError, DatasetError
from consilium.types import FloatArray

SPLIT_FORMAT = "consilium-split"
SPLIT_VERSION = 1
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True, kw_only=True)
class Split:
    """Case ids for training and for validation.

    Args:
        training: Sorted case ids.
        validation: Sorted case ids; no case stands in both.
        structures: Structure -> number of cases in which it is known, in training and in validation.

    Raises:
        DatasetError: If a case stands in both.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    structures: Mapping[str, tuple[int, int]]

    def __post_init__(self) -> None:
        both = set(self.training) & set(self.validation)
        if both:
            raise DatasetError(f"split: a case must train or validate; {len(both)} do both.")


def split_cases(
    cases: Iterable[Case], *, seed: int = 0, validation_fraction: float = VALIDATION_FRACTION
) -> Split:
    """One split by patient.

    The number of validation patients is the nearest integer to the fraction, at least 1 and at most all but
    one. Among them, structures are balanced: rare ones are shared out first (Sechidis, Tsoumakas and Vlahavas
    2011, iterative stratification). The same cases and seed give the same split, in whatever order they come.

    Args:
        cases: At least two patients.
        seed: Of the generator that breaks ties.
        validation_fraction: Of the patients, between 0 and 1.

    Raises:
        ConfigurationError: If the fraction is not between 0 and 1.
        DatasetError: If there are fewer than two patients.
    """
    if not 0 < validation_fraction < 1:
        raise ConfigurationError(
            f"validation_fraction: must lie between 0 and 1; got {validation_fraction:g}."
        )
    patients = _by_patient(cases)
    count = min(max(1, round(validation_fraction * len(patients))), len(patients) - 1)
    parts = _stratified(patients, [len(patients) - count, count], seed)
    return _split(patients, parts, validation=1)


def fold_cases(cases: Iterable[Case], folds: int, *, seed: int = 0) -> tuple[Split, ...]:
    """``folds`` splits; every patient validates in exactly one. Balanced and repeatable as `split_cases`.

    Raises:
        ConfigurationError: If there are fewer than two folds, or more than patients.
        DatasetError: If there are fewer than two patients.
    """
    patients = _by_patient(cases)
    if not 2 <= folds <= len(patients):
        raise ConfigurationError(
            f"folds: must lie between 2 and the number of patients, {len(patients)}; got {folds}."
        )
    sizes = [len(patients) // folds + (k < len(patients) % folds) for k in range(folds)]
    parts = _stratified(patients, sizes, seed)
    return tuple(_split(patients, parts, validation=k) for k in range(folds))


def save_splits(path: Path, splits: Sequence[Split], *, seed: int) -> None:
    """Write splits as JSON, with the seed they were made by."""
    record = {
        "format": SPLIT_FORMAT,
        "version": SPLIT_VERSION,
        "seed": seed,
        "splits": [
            {
                "training": list(split.training),
                "validation": list(split.validation),
                "structures": {name: list(counts) for name, counts in split.structures.items()},
            }
            for split in splits
        ],
    }
    write_json(path, record)


def load_splits(path: Path) -> tuple[Split, ...]:
    """The inverse of `save_splits`.

    Raises:
        DatasetError: If the file is of another format or damaged.
    """
    record: Any = read_json(path)
    if (record.get("format"), record.get("version")) != (SPLIT_FORMAT, SPLIT_VERSION):
        raise DatasetError(f"{path.name}: must be of format {SPLIT_FORMAT!r} version {SPLIT_VERSION}.")
    try:
        return tuple(
            Split(
                training=tuple(entry["training"]),
                validation=tuple(entry["validation"]),
                structures={name: (int(a), int(b)) for name, (a, b) in entry["structures"].items()},
            )
            for entry in record["splits"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path.name}: a field is missing or of a wrong kind: {error}.") from error


def _by_patient(cases: Iterable[Case]) -> dict[str, list[Case]]:
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        patients[case.patient_id].append(case)
    if len(patients) < 2:
        raise DatasetError(
            f"split: needs at least two patients, so that none is in both parts; found {len(patients)}. "
            "Import more patients."
        )
    return {patient: patients[patient] for patient in sorted(patients)}


def _stratified(patients: Mapping[str, list[Case]], sizes: Sequence[int], seed: int) -> dict[str, int]:
    """Patient -> part, with exactly ``sizes`` patients in the parts."""
    names = sorted({name for cases in patients.values() for case in cases for name in case.structures})
    known = np.array(
        [[float(sum(name in c.structures for c in cases)) for name in names] for cases in patients.values()]
    ).reshape(len(patients), len(names))
    rng = np.random.default_rng(seed)
    free = np.asarray(sizes, dtype=np.float64)
    wanted = free[:, None] / free.sum() * known.sum(axis=0)
    part = np.full(len(patients), -1)
    while (part < 0).any():
        rows = np.flatnonzero(part < 0)
        remaining = (known[rows] > 0).sum(axis=0)
        if remaining.any():
            rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
            rows = rows[known[rows, rarest] > 0]
        else:
            rarest = -1
        for row in rng.permutation(rows):
            chosen = _neediest(wanted, free, rarest, rng)
            part[row] = chosen
            wanted[chosen] -= known[row]
            free[chosen] -= 1
    return {patient: int(k) for patient, k in zip(patients, part, strict=True)}


def _neediest(wanted: FloatArray, free: FloatArray, structure: int, rng: np.random.Generator) -> int:
    """The part that still wants most of ``structure`` among those with room; then the one with most room."""
    need = free.copy() if structure < 0 else wanted[:, structure].copy()
    need[free <= 0] = -np.inf
    best = np.flatnonzero(need >= need.max() - 1e-9)
    best = best[free[best] >= free[best].max() - 1e-9]
    return int(rng.choice(best))


def _split(patients: Mapping[str, list[Case]], parts: Mapping[str, int], *, validation: int) -> Split:
    members: tuple[list[Case], list[Case]] = ([], [])
    for patient, cases in patients.items():
        members[parts[patient] == validation].extend(cases)
    names = sorted({name for cases in members for case in cases for name in case.structures})
    return Split(
        training=tuple(sorted(case.case_id for case in members[0])),
        validation=tuple(sorted(case.case_id for case in members[1])),
        structures={
            name: (
                sum(name in c.structures for c in members[0]),
                sum(name in c.structures for c in members[1]),
            )
            for name in names
        },
    )


def _knowing(cases: Sequence[Case], structure: str) -> int:
    return sum(structure in case.structures for case in cases)
