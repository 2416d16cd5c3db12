"""nnU-Net raw out: what its dataset.json must say of structures that overlap."""

from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.dataset import create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import read_nifti
from consilium.exporters.nnunet import export_nnunet
from consilium.geometry.volume import Volume
from consilium.types import Mask
from tests.geometry.grids import grid

GRID = grid((6, 12, 10), (3.0, 1.0, 1.0))


def box(start: int, stop: int) -> Mask:
    mask = np.zeros(GRID.shape_zyx, dtype=bool)
    mask[2:4, start:stop, 2:8] = True
    return mask


def export(folder: Path, masks: dict[str, Mask]) -> dict[str, Any]:
    """Regions by name, in the order of dataset.json, checked against the label map, and ``order``."""
    dataset = create_dataset(folder / "dataset")
    draft = CaseDraft(
        source_identity="1",
        patient_identity="1",
        image=Volume(np.zeros(GRID.shape_zyx, np.int16), GRID),
        modality="CT",
        annotations=tuple(
            AnnotationDraft(structure=name, reader="clinical", mask=lambda m=mask: m)
            for name, mask in masks.items()
        ),
        importer="test",
        source_sha256={},
    )
    case, _ = dataset.add(draft)
    record = export_nnunet(dataset, [case], folder / "out")
    labels = read_nifti(folder / "out" / "labelsTr" / f"{case.case_id}.nii.gz").array
    regions = {name: codes for name, codes in record["labels"].items() if name != "background"}
    for name, codes in regions.items():
        assert np.array_equal(np.isin(labels, codes), masks[name])
    return regions | {"order": record["regions_class_order"]}


def test_regions_that_overlap_have_one_code_each_to_be_painted_in(tmp_path: Path) -> None:
    assert export(tmp_path, {"A": box(1, 6), "B": box(4, 10)}) == {"A": [1, 3], "B": [2, 3], "order": [1, 2]}


def test_an_inner_region_is_painted_after_the_one_around_it(tmp_path: Path) -> None:
    found = export(tmp_path, {"Core": box(4, 6), "Whole": box(1, 10)})
    assert list(found) == ["Whole", "Core", "order"]
    assert found == {"Whole": [1, 2], "Core": 2, "order": [1, 2]}
