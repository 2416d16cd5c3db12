"""One case's folder: writing it from a draft, the names of its files, digests."""

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

import consilium
from consilium.cases.case import (
    Annotation,
    Case,
    Finding,
    ImageRecord,
    Provenance,
    State,
    case_to_json,
)
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.files import sync_folder, write_json
from consilium.cases.nifti import content_sha256, read_nifti, write_nifti
from consilium.errors import DataError, DatasetError
from consilium.geometry.volume import Grid, Volume

CASE_RECORD = "case.json"
CORRECTION = "correction-"
"""How the readers of contours begin that a person drew here, in the review."""


def file_name_of(name: str) -> str:
    """A file name for a structure or reader: readable, safe on every system, one to one."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "structure"
    if slug == name and slug == slug.lower():
        return slug
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def write_case(folder: Path, draft: CaseDraft, case_id: str, patient_id: str) -> Case:
    """Write every file of a case into the empty ``folder``; when it returns, they are on the disk."""
    image = draft.image
    write_nifti(folder / "image.nii.gz", image)
    findings = list(draft.findings)
    annotations = []
    for annotation_draft in draft.annotations:
        annotation = _write_annotation(folder, annotation_draft, image.grid)
        annotations.append(annotation)
        if annotation.state is State.CONTOURED and annotation.voxels == 0:
            findings.append(
                Finding(
                    code="empty-mask",
                    message=f"{annotation.structure!r} of {annotation.reader!r} covers no voxel centre.",
                    remedy="Look at the contour: it may be smaller than a voxel or lie outside the image.",
                )
            )
    case = Case(
        case_id=case_id,
        patient_id=patient_id,
        image=ImageRecord(
            file="image.nii.gz",
            modality=draft.modality,
            unit="HU" if draft.modality == "CT" else "",
            dtype=image.array.dtype.name,
            grid=image.grid,
            content_sha256=content_sha256(image.array),
        ),
        annotations=tuple(annotations),
        instances=draft.instances,
        provenance=Provenance(
            importer=draft.importer,
            consilium_version=consilium.__version__,
            source_sha256=dict(draft.source_sha256),
            scanner=dict(draft.scanner),
        ),
        findings=tuple(findings),
    )
    write_json(folder / CASE_RECORD, case_to_json(case))
    _sync_tree(folder)
    return case


def carry_corrections(old: Path, before: Case, new: Path, case: Case) -> Case:
    """Take what a person drew in a case into the folder that is to replace it; damaged masks stay behind.

    Args:
        old: The case's folder.
        before: Its record.
        new: As `write_case` left it.
        case: Its record.

    Raises:
        DatasetError: The new image is another, on which the corrections may be wrong.
    """
    drawn = [a for a in before.annotations if a.reader.startswith(CORRECTION) and _is_whole(old, a)]
    if not drawn:
        return case
    if (before.image.content_sha256, before.image.grid) != (case.image.content_sha256, case.image.grid):
        raise DatasetError(
            f"{case.case_id}: must keep its image for its {len(drawn)} corrections to stay; the source's "
            "is another. Import it into a new dataset, so that nothing that was drawn is lost."
        )
    for file in filter(None, (annotation.file for annotation in drawn)):
        (new / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old / file, new / file)
    case = replace(case, annotations=(*case.annotations, *drawn))
    write_json(new / CASE_RECORD, case_to_json(case))
    _sync_tree(new)
    return case


def _is_whole(folder: Path, annotation: Annotation) -> bool:
    if annotation.file is None:
        return True
    try:
        return (
            content_sha256(read_nifti(path_inside(folder, annotation.file)).array)
            == annotation.content_sha256
        )
    except (DataError, OSError):
        return False


def _write_annotation(folder: Path, draft: AnnotationDraft, grid: Grid) -> Annotation:
    if draft.mask is None:
        return Annotation(
            structure=draft.structure, reader=draft.reader, state=draft.state, derived=draft.derived
        )
    mask = draft.mask()
    if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.unsignedinteger):
        raise DataError(f"mask of {draft.structure!r}: must be bool or unsigned; found {mask.dtype}.")
    mask = mask.view(np.uint8) if mask.dtype == np.bool_ else mask
    file = f"masks/{file_name_of(draft.reader)}/{file_name_of(draft.structure)}.nii.gz"
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Volume(mask, grid))
    voxels = int(np.count_nonzero(mask))
    return Annotation(
        structure=draft.structure,
        reader=draft.reader,
        state=draft.state,
        file=file,
        content_sha256=content_sha256(mask),
        voxels=voxels,
        volume_cm3=voxels * grid.voxel_volume_cm3,
        derived=draft.derived,
    )


def path_inside(folder: Path, file: str) -> Path:
    """The path of ``file`` in ``folder``; a record must not lead out of its case."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(
            f"{folder.name}: a file of a case must lie in its folder; the record leads out of it."
        )
    return path


def file_sha256(path: Path) -> str:
    """Digest of a small file's bytes."""
    return bytes_sha256(path.read_bytes())


def bytes_sha256(content: bytes) -> str:
    """Digest of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder, so that a power cut after the rename cannot leave an empty one."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(folder)
