"""How far a network for adaptation is to be followed: tried on patients who are deformed by a known field."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from consilium.adaptation.deformation import Deformation
from consilium.adaptation.propagate import StructureShape
from consilium.adaptation.refine import refine
from consilium.adaptation.register import register
from consilium.geometry.resample import resample
from consilium.geometry.volume import Volume
from consilium.inference.model import BEST, Model, load_model, read_model_file, save_model
from consilium.inference.preprocess import AIR
from consilium.inference.strength import CARD_ENTRY, CHOICES
from consilium.metrics.comparison import compare_masks
from consilium.types import Mask, Progress, no_progress

AMOUNTS_MM = (5.0, 10.0, 15.0)
"""How far structures move at most, in turn."""

NOISE_HU = 12.0
TOLERANCE_MM = 2.0
TOLERATED = 0.02
"""Surface Dice that a network may cost on smooth fields, where the registration alone is at home. What it
gains is where anatomy changes as no smooth field does, which no single patient shows."""

MOST_PATIENTS = 6
FIELD_MM = 6.0
"""Spacing of the lattice on which a known field is drawn; it is smoothed over five of its steps."""

FIELD_WIDTH = 5.0
SEED = 20261125

Patient: TypeAlias = tuple[Volume, Mapping[str, Mask]]
"""Image in Hounsfield units, and structures as masks (Z, Y, X) on its grid."""


@dataclass(frozen=True, eq=False)
class KnownPair:
    """A patient on two days, the second made from the first.

    Args:
        planning, repeat: The images, each with noise of its own.
        shapes: Structures of the planning day; empty ones are left out.
        masks: The same structures on the repeat CT.
        truth: The deformation between them.
    """

    planning: Volume
    repeat: Volume
    shapes: Mapping[str, StructureShape]
    masks: Mapping[str, Mask]
    truth: Deformation


def deform_patient(
    image: Volume, masks: Mapping[str, Mask], amount_mm: float, rng: np.random.Generator
) -> KnownPair:
    """A patient and the same one smoothly deformed: inside structures by up to ``amount_mm``.

    Args:
        image: In Hounsfield units.
        masks: (Z, Y, X) on its grid; at least one with a voxel.
        amount_mm: Largest displacement inside structures.
        rng: Source of the field and of the noise.
    """
    grid = image.grid
    shapes = {name: shape for name, m in masks.items() if (shape := StructureShape.of(m, grid)) is not None}
    lattice = grid.resampled((FIELD_MM,) * 3)
    field = rng.normal(0, 1, (3, *lattice.shape_zyx))
    field = np.stack([ndimage.gaussian_filter(part, FIELD_WIDTH, mode="nearest") for part in field])
    union = np.logical_or.reduce([masks[name] for name in shapes]).astype(np.float32)
    inside = resample(Volume(union, grid), lattice, fill=0.0, antialias=True).array > 0.1
    field *= amount_mm / np.linalg.norm(field, axis=0)[inside].max()
    truth = Deformation(field.astype(np.float32), lattice, np.eye(4))
    days = image.array.astype(np.float32), truth.warp(image, grid, fill=AIR).array
    noisy = [Volume((day + rng.normal(0, NOISE_HU, day.shape)).astype(np.float32), grid) for day in days]
    moved = {name: shape.carried(truth, grid) for name, shape in shapes.items()}
    return KnownPair(noisy[0], noisy[1], shapes, moved, truth)


def choose_strengths(
    model: Model, patients: Iterable[Patient], count: int, *, progress: Progress = no_progress
) -> dict[str, float]:
    """Per structure the largest strength that costs at most `TOLERATED` of the mean surface Dice at 2 mm.

    Each patient is deformed by a known field, registered as a repeat CT is, and refined. A structure that no
    patient has gets 0: it is propagated only.

    Args:
        model: A network for adaptation.
        patients: Image and masks of patients who did not train it, each with a voxel in some structure.
        count: How many patients there are at most, for the progress.
        progress: Told after each patient.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in model.structures}
    for number, (image, masks) in enumerate(patients):
        rng = np.random.default_rng([number, SEED])
        pair = deform_patient(image, masks, AMOUNTS_MM[number % len(AMOUNTS_MM)], rng)
        for name, scores in _try_strengths(model, pair):
            found[name].append(scores)
        progress("how far to follow the network (patients)", number + 1, count)
    return {
        name: _largest_allowed(np.mean(scores, axis=0).tolist()) if scores else CHOICES[0]
        for name, scores in found.items()
    }


def _largest_allowed(scores: Sequence[float]) -> float:
    return max(
        strength for strength, score in zip(CHOICES, scores, strict=True) if score >= scores[0] - TOLERATED
    )


def calibrate_run(
    folder: Path, patients: Iterable[Patient], count: int, *, progress: Progress = no_progress
) -> dict[str, float]:
    """Choose the strengths of a run's network for adaptation and write them into the card of its weights.

    Args:
        folder: Of the run, which has ended.
        patients, count, progress: See `choose_strengths`; of the run's validation patients, `MOST_PATIENTS`
            are enough.

    Returns:
        See `choose_strengths`.
    """
    strengths = choose_strengths(load_model(folder), patients, count, progress=progress)
    description, weights, _ = read_model_file(folder / BEST)
    card = {**description.card, CARD_ENTRY: strengths}
    save_model(folder / BEST, replace(description, card=card), weights)
    return strengths


def _try_strengths(model: Model, pair: KnownPair) -> Iterator[tuple[str, list[float]]]:
    """Each structure with its surface Dice for every one of `CHOICES`."""
    grid = pair.repeat.grid
    deformation = register(pair.planning, pair.repeat).deformation
    carried = {name: shape.carried(deformation, grid) for name, shape in pair.shapes.items()}
    ways: list[Mapping[str, Mask]] = []
    for strength in CHOICES:
        every = dict.fromkeys(model.structures, strength)
        found = refine(model, pair.repeat, pair.planning, deformation, pair.shapes, strengths=every)
        ways.append({name: found.mask(name, carried[name], grid) for name in found.probability} or carried)
    for name in pair.shapes:
        figures = [
            compare_masks(pair.masks[name], way[name], grid.spacing_zyx_mm, tolerance_mm=TOLERANCE_MM)
            for way in ways
        ]
        yield name, [figure.surface_dice for figure in figures]
