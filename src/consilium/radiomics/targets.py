"""What a characterisation shall predict: one yes or no per subject, from ratings or from a table."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilium.cases.dataset import Dataset
from consilium.errors import DataError
from consilium.radiomics.table import FeatureRow
from consilium.types import Array, FloatArray

Subject = tuple[str, str, int]
"""(case_id, structure, instance)."""

MAX_MISSING = 0.2
"""A feature that is undefined for a larger part of the subjects is not used."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Features and target of every subject.

    Attributes:
        subjects: N of them.
        patients: (N,) patient of each; subjects of one patient never part.
        tags: F feature tags.
        values: (N, F); NaN where a feature is undefined.
        target: (N,) 0 or 1.
    """

    subjects: tuple[Subject, ...]
    patients: Array
    tags: tuple[str, ...]
    values: FloatArray
    target: Array

    def __post_init__(self) -> None:
        n, f = self.values.shape
        if not len(self.subjects) == len(self.patients) == len(self.target) == n or len(self.tags) != f:
            raise DataError(
                f"cohort: one patient and target per subject, one tag per column; found {len(self.subjects)} "
                f"subjects, {len(self.patients)} patients, {len(self.target)} targets, {len(self.tags)} tags "
                f"and values of {self.values.shape}."
            )

    def column(self, tag: str) -> FloatArray:
        """(N,) values of one feature.

        Raises:
            DataError: If the cohort has no such feature.
        """
        if tag not in self.tags:
            raise DataError(
                f"features: must hold {tag!r}; found {len(self.tags)} others. Compute its family."
            )
        found: FloatArray = self.values[:, self.tags.index(tag)]
        return found

    def patients_with(self, target: int) -> int:
        """Number of patients who have a subject with this target."""
        return len(np.unique(self.patients[self.target == target]))


def targets_from_ratings(
    dataset: Dataset, rating: str = "malignancy", *, middle: float = 3.0
) -> dict[Subject, int]:
    """Targets from the readers' ratings of instances, e.g. LIDC's malignancy from 1 to 5.

    Args:
        dataset: With instances that carry ratings.
        rating: Name of the rating.
        middle: Mean ratings above are 1, below 0; exactly on it nobody knows, and the subject is left out.

    Returns:
        Subject → 0 or 1; only of instances that somebody rated.
    """
    found = {}
    for case in dataset.cases():
        for instance in case.instances:
            values = [marks[rating] for marks in instance.ratings.values() if rating in marks]
            if values and np.mean(values) != middle:
                found[case.case_id, instance.structure, instance.number] = int(np.mean(values) > middle)
    return found


def targets_from_csv(path: Path, column: str) -> dict[Subject, int]:
    """Targets from a table with the columns ``case_id``, ``structure``, ``instance`` and ``column``.

    ``structure`` and ``instance`` may be left out; then a case's target is that of all its contours,
    under the subject ``(case_id, "", 0)``. Values are 0 or 1; an empty cell is not known.

    Raises:
        DataError: If a column is missing, a value is neither 0 nor 1, or an instance is no whole number.
    """
    found = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("case_id", column) if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path.name}: must have the columns 'case_id' and {column!r}; missing {missing}."
            )
        for record in reader:
            value = (record[column] or "").strip()
            if value not in {"", "0", "1"}:
                raise DataError(f"{path.name}: {column!r} must be 0, 1 or empty; found {value!r}.")
            if value:
                number = _instance(path, record.get("instance") or "0")
                found[record["case_id"], record.get("structure") or "", number] = int(value)
    return found


def _instance(path: Path, cell: str) -> int:
    """A number of an instance; spreadsheets and pandas write 1 as 1.0."""
    try:
        number = float(cell)
    except ValueError:
        number = -1.0
    if number < 0 or not number.is_integer():
        raise DataError(f"{path.name}: 'instance' must be a whole number from 0; found {cell!r}.")
    return int(number)


def build_cohort(
    rows: Sequence[FeatureRow], targets: dict[Subject, int], *, reader: str | None = None
) -> Cohort:
    """Join features and targets.

    Args:
        rows: A feature table.
        targets: See `targets_from_ratings` and `targets_from_csv`.
        reader: Whose contours; None takes the mean over all readers of their own (no derived, no prediction).

    Returns:
        Subjects that have both; features that are undefined for more than `MAX_MISSING` of them are dropped.
    """
    readings: dict[Subject, dict[str, list[float]]] = {}
    patients: dict[Subject, str] = {}
    for row in rows:
        key = row.contour
        chosen = key.reader == reader if reader else not key.derived and key.reader != "prediction"
        if chosen and _target(key.subject, targets) is not None:
            readings.setdefault(key.subject, {}).setdefault(row.feature.tag, []).append(row.feature.value)
            patients[key.subject] = key.patient_id
    subjects = tuple(sorted(readings))
    tags = sorted({tag for values in readings.values() for tag in values})
    values = np.array(
        [[_mean(readings[subject].get(tag, [])) for tag in tags] for subject in subjects], np.float64
    ).reshape(len(subjects), len(tags))
    kept = np.isnan(values).mean(axis=0) <= MAX_MISSING if len(subjects) else np.zeros(len(tags), bool)
    return Cohort(
        subjects=subjects,
        patients=np.array([patients[subject] for subject in subjects], dtype=str),
        tags=tuple(tag for tag, keep in zip(tags, kept, strict=True) if keep),
        values=values[:, kept],
        target=np.array([_target(subject, targets) for subject in subjects], dtype=np.int64),
    )


def _target(subject: Subject, targets: dict[Subject, int]) -> int | None:
    return targets.get(subject, targets.get((subject[0], "", 0)))


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
