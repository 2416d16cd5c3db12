"""A corrected contour becomes a new reader in the dataset; what was there stays as it is."""

from collections.abc import Callable
from dataclasses import replace

from consilium.cases.annotate import write_annotation
from consilium.cases.case import Annotation, Case
from consilium.cases.commit import dataset_lock
from consilium.cases.dataset import Dataset
from consilium.cases.folder import CORRECTION
from consilium.review.store import DecisionConflict, DecisionStore
from consilium.types import Mask


def add_correction(
    dataset: Dataset,
    case_id: str,
    structure: str,
    mask: Mask,
    *,
    announce: Callable[[str], None] = lambda reader: None,
) -> tuple[Case, Annotation]:
    """Write ``mask`` as the contour of the next free reader ``correction-N``, one process at a time.

    Args:
        dataset: Gets the annotation.
        case_id: Of this dataset.
        structure: Name.
        mask: (Z, Y, X) on the case's grid; may be empty, which says that the structure is absent.
        announce: Told the new reader before anything is written.

    Returns:
        The case as it is now, and the new annotation.
    """
    folder = dataset.folder / "review"
    folder.mkdir(exist_ok=True)
    with dataset_lock(folder):
        reader = _next_reader(dataset.case(case_id))
        announce(reader)
        return write_annotation(dataset, case_id, structure, mask, reader=reader)


def complete_corrections(dataset: Dataset, store: DecisionStore) -> int:
    """Finish what a kill interrupted between a correction's contour and its decision.

    Where the contour is in the dataset, the decision that was noted before is made; where it is not, nothing
    was confirmed and the note is dropped.

    Returns:
        How many decisions were made.
    """
    made = 0
    for decision, seen in store.intents():
        known = decision.case_id in dataset.case_ids
        case = dataset.case(decision.case_id) if known else None
        drawn = None if case is None else case.annotation(decision.structure, decision.reader)
        if drawn is None:
            store.forget(decision.request_id)
            continue
        try:
            store.decide(replace(decision, contour_sha256=content_of(drawn)), seen=seen)
            made += 1
        except DecisionConflict:
            store.forget(decision.request_id)
    return made


def content_of(annotation: Annotation | None) -> str:
    """What a decision notes of the contour meant: its digest, ``absent``, or nothing where there is none."""
    return "" if annotation is None else annotation.content_sha256 or "absent"


def _next_reader(case: Case) -> str:
    taken = {annotation.reader for annotation in case.annotations}
    number = 1
    while f"{CORRECTION}{number}" in taken:
        number += 1
    return f"{CORRECTION}{number}"
