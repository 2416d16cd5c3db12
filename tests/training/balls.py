"""A dataset of noisy lungs with soft balls in them, for detectors and cascades."""

from pathlib import Path

import numpy as np

from consilium.cases.case import Instance, State
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume

GRID = Grid((48, 48, 48), Affine.from_spacing((2.0, 2.0, 2.0), origin_lps_mm=(-40.0, -50.0, 20.0)))


def balls(*places: tuple[tuple[float, float, float], float]) -> tuple[Volume, np.ndarray]:
    """A noisy lung with soft balls (centre as index, diameter in mm), and the labels."""
    image = np.random.default_rng(0).normal(-850, 20, GRID.shape_zyx)
    labels = np.zeros(GRID.shape_zyx, np.uint8)
    index = np.indices(GRID.shape_zyx).astype(float)
    for number, (centre, diameter) in enumerate(places, start=1):
        inside = np.linalg.norm(index - np.reshape(centre, (3, 1, 1, 1)), axis=0) * 2 <= diameter / 2
        image[inside] = 40
        labels[inside] = number
    return Volume(image.astype(np.int16), GRID), labels


def dataset_of(folder: Path) -> Dataset:
    dataset = create_dataset(folder)
    for k in range(3):
        centre = (14.0 + 4 * k, 24.0, 20.0 + 3 * k)
        volume, labels = balls((centre, 14.0))
        x, y, z = GRID.affine.to_points(centre)
        thing = Instance(structure="Nodule", number=1, centre_lps_mm=(x, y, z), diameter_mm=14.0)
        point = Instance(structure="Non-nodule", number=1, centre_lps_mm=(0, 0, 40), diameter_mm=-1)
        dataset.add(
            CaseDraft(
                source_identity=f"ball-{k}",
                patient_identity=f"ball-{k}",
                image=volume,
                modality="CT",
                annotations=(
                    AnnotationDraft(
                        structure="Nodule",
                        reader="truth",
                        state=State.CONTOURED,
                        mask=lambda labels=labels: labels,
                    ),
                ),
                importer="phantom",
                source_sha256={},
                instances=(thing, point),
            )
        )
    return dataset
