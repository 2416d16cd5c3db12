"""A corrected contour becomes a new reader in the dataset; what was there stays as it is."""

import threading
from dataclasses import replace

import numpy as np

from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.folder import file_name_of
from consilium.cases.nifti import content_sha256, write_nifti
from consilium.geometry.volume import Volume
from consilium.types import Mask

READER_PREFIX = "correction-"
_lock = threading.Lock()


def add_correction(dataset: Dataset, case_id: str, structure: str, mask: Mask) -> tuple[Case, Annotation]:
    """Write ``mask`` as the contour of the next free reader ``correction-N``.

    Args:
        dataset: Gets the annotation.
        case_id: Of this dataset.
        structure: Name.
        mask: (Z, Y, X) on the case's grid; may be empty, which says that the structure is absent.

    Returns:
        The case as it is now, and the new annotation.
    """
    with _lock:
        case = dataset.case(case_id)
        reader = _next_reader(case)
        annotation = Annotation(structure=structure, reader=reader, state=State.ABSENT)
        if mask.any():
            file = f"masks/{file_name_of(reader)}/{file_name_of(structure)}.nii.gz"
            path = dataset.case_folder(case_id) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            write_nifti(temporary, Volume(mask, case.image.grid))
            temporary.replace(path)
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


def _next_reader(case: Case) -> str:
    taken = {annotation.reader for annotation in case.annotations}
    number = 1
    while f"{READER_PREFIX}{number}" in taken:
        number += 1
    return f"{READER_PREFIX}{number}"
