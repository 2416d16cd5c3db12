"""Small case drafts for tests of the dataset format and of everything that reads it."""

import numpy as np

from consilium.cases.case import State
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.geometry.volume import Grid, Volume
from consilium.types import Mask
from tests.geometry.grids import grid


def ball_mask(target: Grid, centre_zyx: tuple[float, float, float], radius_mm: float) -> Mask:
    """Voxel centres within ``radius_mm`` of the voxel index ``centre_zyx``."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape_zyx), indexing="ij"), axis=-1)
    distance = (index - np.asarray(centre_zyx)) * np.asarray(target.spacing_zyx_mm)
    return np.asarray(np.linalg.norm(distance, axis=-1) <= radius_mm)


def draft(number: int = 1, *, patient: int | None = None, target: Grid | None = None) -> CaseDraft:
    """A case with a bladder (contoured by two readers), an absent prostate and noise as CT."""
    target = target or grid((12, 20, 18), (3.0, 1.0, 1.5))
    values = np.random.default_rng(number).integers(-1000, 1500, target.shape_zyx, dtype=np.int16)
    middle = tuple(n / 2 for n in target.shape_zyx)
    ball = ball_mask(target, (middle[0], middle[1], middle[2]), 6.0)
    return CaseDraft(
        source_identity=f"1.2.3.{number}",
        patient_identity=f"Doe^Jane{number if patient is None else patient}",
        image=Volume(values, target),
        modality="CT",
        annotations=(
            AnnotationDraft(structure="Bladder", reader="clinical", mask=lambda: ball),
            AnnotationDraft(structure="Bladder", reader="reader-2", mask=lambda: np.roll(ball, 1, axis=2)),
            AnnotationDraft(structure="Prostate", reader="clinical", state=State.ABSENT),
        ),
        importer="test",
        source_sha256={"series": f"{number:064x}"},
        scanner={"Manufacturer": "Phantom", "KVP": 120.0},
        private={"patient_name": f"Doe^Jane{number}", "series_instance_uid": f"1.2.3.{number}"},
    )
