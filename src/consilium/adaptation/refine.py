"""The propagated contours, refined by a network that sees the repeat CT."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from consilium.adaptation.deformation import Deformation
from consilium.adaptation.propagate import StructureShape
from consilium.errors import CheckpointError
from consilium.geometry.volume import Grid, Volume
from consilium.inference.contour import probabilities_of_image
from consilium.inference.model import PRIOR_CARD, Model
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.preprocess import AIR, PRIOR_REACH_MM, Prior, map_to_grid, prepare_image
from consilium.inference.strength import follow, strengths_of
from consilium.types import FloatArray, Mask, Progress, no_progress

SOFTNESS_MM = 3.0
"""Of a propagated contour that is fused with a contouring network: at this depth its odds are e to 1."""

SURE = 6.0
"""Largest logit of either voice, so that neither can overrule the other by certainty alone."""

REACH_MM = 15.0
"""Nothing is added farther from the propagated contour: what the network finds there is another thing."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """Refined structures on the network's grid.

    Args:
        probability: Structure -> (Z, Y, X) float32 in [0, 1].
        grid: The network's.
        source: ``"refined"`` or ``"fused"``, see `refine`.
        largest_component: Structures of which only the largest part is kept.
    """

    probability: Mapping[str, FloatArray]
    grid: Grid
    source: str
    largest_component: frozenset[str]

    def mask(self, structure: str, propagated: Mask, grid: Grid) -> Mask:
        """The refined structure on the repeat CT's grid, near its propagated contour."""
        mask = map_to_grid(Volume(self.probability[structure], self.grid), grid)
        near = _within(propagated, REACH_MM, grid)
        mask = np.asarray(mask & near)
        return keep_largest_component(mask) if structure in self.largest_component else mask


def refine(
    model: Model,
    repeat: Volume,
    planning: Volume,
    deformation: Deformation,
    shapes: Mapping[str, StructureShape],
    *,
    strengths: Mapping[str, float] | None = None,
    progress: Progress = no_progress,
) -> Refinement:
    """Ask the network about every structure that both it and the planning contours know.

    A network for adaptation (``consilium train --adaptation``) gets the repeat CT, the warped planning CT and
    the propagated contours. It is followed as far as its validation patients allow; a structure in which it
    made well carried contours worse there is left out.

    An ordinary contouring network gets the repeat CT alone; the mean of its logit and that of the propagated
    contour then decides, so that it moves a surface by as much as it is sure.

    Args:
        model: See `consilium.inference.model.load_model`.
        repeat: The repeat CT.
        planning: The planning CT.
        deformation: Between them.
        shapes: Of the planning structures.
        strengths: Structure -> how far a network for adaptation is followed; by default as its card says.
        progress: Told while the network works.

    Raises:
        CheckpointError: A network for adaptation of an earlier version, or one whose training has not ended.
    """
    card = model.description.card
    if model.description.takes_prior and not PRIOR_CARD.items() <= card.items():
        raise CheckpointError(
            "model: a network for adaptation must be one whose output is added to the earlier contours; this "
            "one was trained by an earlier version. Train it again with consilium train --adaptation."
        )
    prepared = prepare_image(repeat, model.preprocessing)
    if model.description.takes_prior:
        followed = strengths_of(card) if strengths is None else strengths
        if followed is None:
            raise CheckpointError(
                "model: how far a network for adaptation is to be followed must be known; its training has "
                "not ended. End it with consilium train --resume."
            )
        asked = {s: name for s, name in enumerate(model.structures) if name in shapes and followed.get(name)}
        probability = {}
        if asked:
            prior = _prior(model, planning, deformation, shapes, prepared.grid)
            found = probabilities_of_image(model, prepared.array, prior, progress=progress)
            probability = {
                name: follow(found[s], prior.depth_mm[s], followed[name]) for s, name in asked.items()
            }
    else:
        found = probabilities_of_image(model, prepared.array, progress=progress)
        probability = {
            name: _fused(found[s], shapes[name], deformation, prepared.grid)
            for s, name in enumerate(model.structures)
            if name in shapes
        }
    return Refinement(
        probability=probability,
        grid=prepared.grid,
        source="refined" if model.description.takes_prior else "fused",
        largest_component=frozenset(model.description.largest_component),
    )


def _prior(
    model: Model,
    planning: Volume,
    deformation: Deformation,
    shapes: Mapping[str, StructureShape],
    grid: Grid,
) -> Prior:
    """The planning day as the registration laid it on the network's grid."""
    depth = np.full((len(model.structures), *grid.shape_zyx), -PRIOR_REACH_MM, dtype=np.float32)
    for s, name in enumerate(model.structures):
        if name in shapes:
            depth[s] = shapes[name].depth_carried(deformation, grid)
    return Prior(image=deformation.warp(planning, grid, fill=AIR).array, depth_mm=depth)


def _fused(
    probability: FloatArray, shape: StructureShape, deformation: Deformation, grid: Grid
) -> FloatArray:
    mask = shape.carried(deformation, grid)
    spacing = grid.spacing_zyx_mm
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    depth = depth - ndimage.distance_transform_edt(~mask, sampling=spacing)
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    voices = np.clip(np.log(clipped / (1 - clipped)), -SURE, SURE) + np.clip(depth / SOFTNESS_MM, -SURE, SURE)
    return np.asarray(1 / (1 + np.exp(-voices / 2)), dtype=np.float32)


def _within(mask: Mask, distance_mm: float, grid: Grid) -> Mask:
    """Within a box that reaches ``distance_mm`` to each side of the mask's voxels."""
    size = tuple(2 * max(1, round(distance_mm / s)) + 1 for s in grid.spacing_zyx_mm)
    near: Callable[..., np.ndarray] = ndimage.maximum_filter
    return np.asarray(near(mask.view(np.uint8), size=size)).view(np.bool_)
