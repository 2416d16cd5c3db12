"""Small pairs of phantom CT whose deformation is known, and what a registration made of them."""

from functools import cache

import numpy as np

from consilium.adaptation.propagate import StructureShape
from consilium.adaptation.register import Registration, register
from consilium.geometry.contours import mask_from_polygons
from consilium.metrics.overlap import dice
from consilium.phantoms.pelvis import HOSPITALS, PhantomPatient, build_cohort
from consilium.phantoms.repeat import RepeatPatient, build_repeat, choose_change
from consilium.types import FloatArray, Mask

WEST = HOSPITALS[3]
"""The coarsest scanner, so that a registration takes seconds."""


@cache
def pair(amount_mm: float, seed: int = 1) -> tuple[PhantomPatient, RepeatPatient]:
    """A patient on both days."""
    patient = build_cohort(WEST, 1, seed=40 + seed)[0]
    rng = np.random.default_rng([seed, round(amount_mm)])
    return patient, build_repeat(patient, choose_change(patient, amount_mm, rng=rng), rng=rng)


@cache
def registered(amount_mm: float, seed: int = 1) -> Registration:
    """Their registration."""
    patient, repeat = pair(amount_mm, seed)
    return register(patient.image, repeat.image)


def planning_masks(patient: PhantomPatient) -> dict[str, Mask]:
    """The planning contours as masks."""
    return {name: mask_from_polygons(p, patient.image.grid) for name, p in patient.contours.items()}


def propagated_dice(patient: PhantomPatient, repeat: RepeatPatient, found: Registration) -> dict[str, float]:
    """Dice of every propagated structure with the truth."""
    grid = repeat.image.grid
    scores = {}
    for name, mask in planning_masks(patient).items():
        shape = StructureShape.of(mask, patient.image.grid)
        assert shape is not None
        scores[name] = dice(repeat.masks[name], shape.carried(found.deformation, grid))
    return scores


def field_errors_mm(repeat: RepeatPatient, found: Registration) -> FloatArray:
    """Distance between the found and the true planning point of every voxel of the body."""
    index = np.argwhere(found.repeat.body)
    points = found.deformation.grid.affine.to_points(index)
    return np.linalg.norm(found.deformation.to_planning(points) - repeat.change.to_planning(points), axis=1)
