"""A model applied to an image: masks on the image's own grid, one structure at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from consilium.errors import MemoryPlanError
from consilium.geometry.volume import Volume
from consilium.inference.device import available_memory_bytes
from consilium.inference.memory import predict_inference_bytes
from consilium.inference.model import Model
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.preprocess import map_to_grid, prepare_image
from consilium.inference.sliding_window import predict_windows
from consilium.inference.whole_volume import predict_whole
from consilium.types import Array, FloatArray, Mask, Progress, Shape, no_progress

MEMORY_SHARE = 0.7
"""Part of the memory at hand that a pass may take."""

SMALLEST_WINDOW = 24
"""Voxels along the longest axis; smaller windows see too little around a structure."""


@dataclass(frozen=True, kw_only=True)
class Contoured:
    """What is known of one contoured structure beside its mask.

    Attributes:
        structure: Name.
        voxels: Inside the mask.
        volume_cm3: Of the mask.
    """

    structure: str
    voxels: int
    volume_cm3: float


def contour_volume(
    model: Model, volume: Volume, *, progress: Progress = no_progress
) -> Iterator[tuple[str, Mask, Contoured]]:
    """Contour an image.

    Args:
        model: See `consilium.inference.model.load_model`.
        volume: In Hounsfield units for a CT model, in any orientation.
        progress: Told after each structure.

    Yields:
        Structure, bool (Z, Y, X) on the image's grid, and its figures: one structure at a time, so that
        never more than one full-size mask is needed.
    """
    prepared = prepare_image(volume, model.preprocessing)
    probability = probabilities_of_image(model, prepared.array, progress=progress)
    for s, name in enumerate(model.structures):
        mask = map_to_grid(Volume(probability[s], prepared.grid), volume.grid)
        if name in model.description.largest_component:
            mask = keep_largest_component(mask)
        voxels = int(np.count_nonzero(mask))
        progress("contouring", s + 1, len(model.structures))
        yield (
            name,
            mask,
            Contoured(structure=name, voxels=voxels, volume_cm3=voxels * volume.grid.voxel_volume_cm3),
        )


def probabilities_of_image(model: Model, image: Array, *, progress: Progress = no_progress) -> FloatArray:
    """Probabilities (S, Z, Y, X) of a prepared image: one pass where the memory allows, else windows."""
    window = choose_window(model, (image.shape[0], image.shape[1], image.shape[2]))
    if window is None:
        return predict_whole(model, image)
    return predict_windows(model, image, window, progress=progress)


def choose_window(model: Model, shape_zyx: Shape, *, memory_bytes: int | None = None) -> Shape | None:
    """None if the image goes through in one pass; else the shape of the windows.

    A model that was trained on patches sees windows of that shape: borders look as they did in training.
    """
    window = model.description.window_zyx
    if window is not None:
        return window
    config = model.description.network
    usable = MEMORY_SHARE * (available_memory_bytes(model.device) if memory_bytes is None else memory_bytes)
    if predict_inference_bytes(config, shape_zyx) <= usable:
        return None
    shape = list(shape_zyx)
    while predict_inference_bytes(config, (shape[0], shape[1], shape[2])) > usable:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
        if max(shape) < SMALLEST_WINDOW:
            needed = predict_inference_bytes(config, (shape[0], shape[1], shape[2]))
            raise MemoryPlanError(
                f"contouring: even a window of {tuple(shape)} voxels must fit in the memory; it needs "
                f"{needed / 2**20:.0f} MiB and {usable / 2**20:.0f} MiB are at hand. Close other programs."
            )
    return shape[0], shape[1], shape[2]
