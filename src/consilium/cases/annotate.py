"""Add what a person or a model drew to a case that is in a dataset; nothing there is overwritten."""

import os

import numpy as np

from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.files import sync_folder
from consilium.cases.folder import file_name_of
from consilium.cases.nifti import content_sha256, write_nifti
from consilium.geometry.volume import Volume
from consilium.types import Mask


def write_annotation(
    dataset: Dataset, case_id: str, structure: str, mask: Mask, *, reader: str, doubt: float | None = None
) -> tuple[Case, Annotation]:
    """Write ``mask`` as ``reader``'s contour of ``structure``: the file first, synced, then the record.

    Killed in between, the case has its contour of before: files of other content have other names.

    Args:
        dataset: Gets the annotation.
        case_id: Of this dataset.
        structure: Name.
        mask: (Z, Y, X) on the case's grid; may be empty, which says that the structure is absent.
        reader: Pseudonym of who drew it; an earlier contour of the same reader is replaced.
        doubt: Of a model: one minus the Dice that it expects.

    Returns:
        The case as it is now, and the new annotation.
    """
    before = dataset.case(case_id)
    grid = before.image.grid
    annotation = Annotation(structure=structure, reader=reader, state=State.ABSENT, doubt=doubt)
    if mask.any():
        digest = content_sha256(mask.view(np.uint8))
        file = f"masks/{file_name_of(reader)}/{file_name_of(structure)}-{digest[:8]}.nii.gz"
        path = dataset.case_folder(case_id) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        write_nifti(temporary, Volume(mask, grid))
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
            content_sha256=digest,
            voxels=voxels,
            volume_cm3=voxels * grid.voxel_volume_cm3,
            doubt=doubt,
        )
    case = dataset.add_annotation(case_id, annotation)
    replaced = before.annotation(structure, reader)
    if replaced and replaced.file and replaced.file not in {a.file for a in case.annotations}:
        (dataset.case_folder(case_id) / replaced.file).unlink(missing_ok=True)
    return case, annotation
