"""Feature tables: one row per contour and feature, written and read as CSV."""

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from consilium.errors import DataError
from consilium.radiomics.features import FeatureValue


@dataclass(frozen=True, kw_only=True)
class ContourKey:
    """Which contour a feature was computed on.

    Attributes:
        case_id: Pseudonym of the image.
        patient_id: Pseudonym of the patient; splits go by it.
        structure: Name of the structure.
        instance: Number of the instance, e.g. of one nodule; 0 where a structure is one thing.
        reader: Who drew it; ``"prediction"`` for a model.
        derived: Whether it was computed from other contours, so that it is no reader of its own.
    """

    case_id: str
    patient_id: str
    structure: str
    instance: int
    reader: str
    derived: bool = False

    @property
    def subject(self) -> tuple[str, str, int]:
        """The thing itself, whoever drew it."""
        return self.case_id, self.structure, self.instance


@dataclass(frozen=True)
class FeatureRow:
    """One feature of one contour."""

    contour: ContourKey
    feature: FeatureValue


KEY_COLUMNS = tuple(field.name for field in fields(ContourKey))
FEATURE_COLUMNS = tuple(field.name for field in fields(FeatureValue))
COLUMNS = KEY_COLUMNS + FEATURE_COLUMNS


def write_table(path: Path, rows: Iterable[FeatureRow]) -> int:
    """Write rows as CSV (UTF-8, ``\\n``); a value that is not defined is an empty cell.

    Rows are written as they come, to a file aside that takes the name when it is whole.

    Returns:
        The number of rows.
    """
    aside = path.with_name(path.name + ".part")
    count = 0
    with aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            value = row.feature.value
            cell = "" if math.isnan(value) else repr(float(value))
            writer.writerow(asdict(row.contour) | row.feature.as_dict() | {"value": cell})
            count += 1
    aside.replace(path)
    return count


def read_table(path: Path) -> list[FeatureRow]:
    """Read what `write_table` wrote.

    Raises:
        DataError: If a column is missing or a value is no number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path.name}: must be a table of consilium features; the columns {missing} are missing. "
                "Make it with 'consilium features'."
            )
        try:
            return [_row(record) for record in reader]
        except ValueError as error:
            raise DataError(f"{path.name}: values must be numbers; {error}. Make the table again.") from error


def _row(record: dict[str, str]) -> FeatureRow:
    key = ContourKey(
        case_id=record["case_id"],
        patient_id=record["patient_id"],
        structure=record["structure"],
        instance=int(record["instance"]),
        reader=record["reader"],
        derived=record["derived"] == "True",
    )
    value = float(record["value"]) if record["value"] else math.nan
    texts = {name: record[name] for name in FEATURE_COLUMNS if name != "value"}
    return FeatureRow(key, FeatureValue(value=value, **texts))
