"""A corrected contour becomes a new reader in the dataset; what was there stays as it is."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.files import sync_folder
from consilium.cases.folder import file_name_of
from consilium.cases.nifti import content_sha256, write_nifti
from consilium.geometry.volume import Volume
from consilium.review.store import DecisionConflict, DecisionStore
from consilium.types import Mask

READER_PREFIX = "correction-"
_lock = threading.Lock()


def add_correction(
    dataset: Dataset,
    case_id: str,
    structure: str,
    mask: Mask,
    *,
    announce: Callable[[str], None] = lambda reader: None,
) -> tuple[Case, Annotation]:
    """Write ``mask`` as the contour of the next free reader ``correction-N``.

    Args:
        dataset: Gets the annotation.
        case_id: Of this dataset.
        structure: Name.
        mask: (Z, Y, X) on the case's grid; may be empty, which says that the structure is absent.
        announce: Told the new reader before anything is written.

    Returns:
        The case as it is now, and the new annotation.
    """
    with _lock:
        case = dataset.case(case_id)
        reader = _next_reader(case)
        announce(reader)
        annotation = Annotation(structure=structure, reader=reader, state=State.ABSENT)
        if mask.any():
            file = f"masks/{file_name_of(reader)}/{file_name_of(structure)}.nii.gz"
            path = dataset.case_folder(case_id) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            write_nifti(temporary, Volume(mask, case.image.grid))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
            voxels = int(np.count_nonzero(mask))
            annotation = Annotation(
                structure=structure,
                reader=reader,
                state=State.CONTOURED,
                file=file,
                content_sha256=content_sha256(mask.view(np.uint8)),
                voxels=voxels,
                volume_cm3=voxels * case.image.grid.voxel_volume_cm3,
            )
        case = replace(case, annotations=(*case.annotations, annotation))
        dataset.update(case)
        return case, annotation


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
        if case is None or case.annotation(decision.structure, decision.reader) is None:
            store.forget(decision.request_id)
            continue
        try:
            store.decide(decision, seen=seen)
            made += 1
        except DecisionConflict:
            store.forget(decision.request_id)
    return made


def _next_reader(case: Case) -> str:
    taken = {annotation.reader for annotation in case.annotations}
    number = 1
    while f"{READER_PREFIX}{number}" in taken:
        number += 1
    return f"{READER_PREFIX}{number}"
