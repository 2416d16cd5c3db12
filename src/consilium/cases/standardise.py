"""Bringing a dataset to its accepted names, undoably: the records are kept before they change."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from consilium.cases.case import case_from_json, case_to_json
from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.cases.names import load_names, rename_case
from consilium.errors import DatasetError

UNDO_FOLDER = "undo"
UNDO_FORMAT = "consilium-undo"
UNDO_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """What changed.

    Args:
        changed: Case ids whose record changed.
        kept: Case ids left alone, because they were changed since (only when undoing).
    """

    changed: tuple[str, ...]
    kept: tuple[str, ...] = ()


def standardise(dataset: Dataset) -> Standardised:
    """Apply the accepted names to every case; the records as they were are written first.

    Killed in between, it can be run again or undone. Where nothing changes, nothing is written.
    """
    accepted = load_names(dataset.folder)
    before = {}
    for case in dataset.cases():
        if rename_case(case, accepted) != case:
            before[case.case_id] = case_to_json(case)
    if not before:
        return Standardised(changed=())
    folder = dataset.folder / UNDO_FOLDER
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=0)
    record = {"format": UNDO_FORMAT, "version": UNDO_VERSION, "accepted": accepted, "cases": before}
    write_json(folder / f"{number:04d}.json", record)
    for case_id in before:
        dataset.change(case_id, partial(rename_case, accepted=accepted))
    return Standardised(changed=tuple(sorted(before)))


def undo_standardise(dataset: Dataset) -> Standardised:
    """Take back the last `standardise`; cases that were changed since are left alone and named.

    Raises:
        DatasetError: If there is nothing to undo, or the kept records are damaged.
    """
    folder = dataset.folder / UNDO_FOLDER
    files = sorted(folder.glob("[0-9]*.json"))
    if not files:
        raise DatasetError("undo: must follow a standardise; there is none to undo.")
    record: Any = read_json(files[-1])
    if (record.get("format"), record.get("version")) != (UNDO_FORMAT, UNDO_VERSION):
        raise DatasetError(f"{UNDO_FOLDER}/{files[-1].name}: must be of format {UNDO_FORMAT!r}; it is not.")
    changed, kept = [], []
    listed = set(dataset.case_ids)
    for case_id, old in record["cases"].items():
        before = case_from_json(old)
        if case_id not in listed:
            kept.append(case_id)
            continue
        now = dataset.case(case_id)
        if now == rename_case(before, record["accepted"]):
            dataset.update(before)
            changed.append(case_id)
        elif now != before:
            kept.append(case_id)
    files[-1].unlink()
    return Standardised(changed=tuple(changed), kept=tuple(kept))
