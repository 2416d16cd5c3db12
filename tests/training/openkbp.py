"""The OpenKBP patients as a dataset, for tests and experiments on real data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import read_nifti
from consilium.types import Mask


def _mask(path: Path) -> Mask:
    return np.asarray(read_nifti(path).array > 0)


def build_dataset(folder: Path, patients: Sequence[Path]) -> Dataset:
    """A dataset of OpenKBP folders; a structure without a file is unknown."""
    dataset = create_dataset(folder)
    for patient in patients:
        annotations = tuple(
            AnnotationDraft(
                structure=path.name.removesuffix(".nii.gz"), reader="clinical", mask=lambda p=path: _mask(p)
            )
            for path in sorted((patient / "segmentations").glob("*.nii.gz"))
        )
        draft = CaseDraft(
            source_identity=patient.name,
            patient_identity=patient.name,
            image=read_nifti(patient / "ct.nii.gz"),
            modality="CT",
            annotations=annotations,
            importer="openkbp-test",
            source_sha256={"name": patient.name},
        )
        dataset.add(draft)
    return dataset
