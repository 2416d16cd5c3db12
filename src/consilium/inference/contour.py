"""A model, or several, applied to an image: masks on the image's own grid, one structure at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.errors import ConfigurationError, MemoryPlanError
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.inference.device import available_memory_bytes
from consilium.inference.doubt import (
    Calibration,
    calibration_of,
    compute_doubt,
    entropy_bits,
    expected_dice,
)
from consilium.inference.memory import predict_inference_bytes
from consilium.inference.model import Model
from consilium.inference.postprocess import keep_largest_component
from consilium.inference.preprocess import Prior, map_to_grid, prepare_image
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
        promised_dice: The Dice that the probabilities themselves promise; NaN where nothing was found.
        doubt: In [0, 1]: one minus the Dice to be expected: the promised one, calibrated on the model's
            validation patients where it was one model and they were enough; NaN where nothing was found.
    """

    structure: str
    voxels: int
    volume_cm3: float
    promised_dice: float
    doubt: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Probabilities on the network's grid.

    Attributes:
        structures: What each channel is.
        probability: (S, Z, Y, X) float32 in [0, 1]; the mean over the models.
        grid: The network's, of the first model.
        largest_component: Structures of which only the largest part is kept.
        calibration: Of promised Dice; None for several models, or where the model has none.
    """

    structures: tuple[str, ...]
    probability: FloatArray
    grid: Grid
    largest_component: frozenset[str]
    calibration: Calibration | None = None


def contour_volume(
    model: Model | Sequence[Model], volume: Volume, *, progress: Progress = no_progress
) -> Iterator[tuple[str, Mask, Contoured]]:
    """Contour an image.

    Args:
        model: See `consilium.inference.model.load_model`; of several, the mean probability counts.
        volume: In Hounsfield units for a CT model, in any orientation.
        progress: Told after each structure.

    Yields:
        Structure, bool (Z, Y, X) on the image's grid, and its figures: one structure at a time, so that
        never more than one full-size mask is needed.
    """
    models = [model] if isinstance(model, Model) else list(model)
    yield from contour_prediction(predict(models, volume, progress=progress), volume.grid, progress=progress)


def contour_prediction(
    prediction: Prediction, grid: Grid, *, progress: Progress = no_progress
) -> Iterator[tuple[str, Mask, Contoured]]:
    """The masks of a prediction on the image's ``grid``; yields as `contour_volume` does."""
    for s, name in enumerate(prediction.structures):
        mask = structure_mask(prediction, s, grid)
        voxels = int(np.count_nonzero(mask))
        progress("contouring", s + 1, len(prediction.structures))
        yield (
            name,
            mask,
            Contoured(
                structure=name,
                voxels=voxels,
                volume_cm3=voxels * grid.voxel_volume_cm3,
                promised_dice=expected_dice(prediction.probability[s]),
                doubt=compute_doubt(prediction.probability[s], prediction.calibration),
            ),
        )


def structure_mask(prediction: Prediction, structure: int, grid: Grid) -> Mask:
    """The mask of one structure on the image's ``grid``."""
    mask = map_to_grid(Volume(prediction.probability[structure], prediction.grid), grid)
    if prediction.structures[structure] in prediction.largest_component:
        mask = keep_largest_component(mask)
    return mask


def predict(models: Sequence[Model], volume: Volume, *, progress: Progress = no_progress) -> Prediction:
    """Mean probability of several models, on the first one's network grid.

    Raises:
        ConfigurationError: No model, or models of different structures.
    """
    if not models or any(model.structures != models[0].structures for model in models):
        raise ConfigurationError(
            "contouring: all models must contour the same structures, in the same order; "
            f"found {[list(model.structures) for model in models]}."
        )
    total: FloatArray | None = None
    grid = volume.grid
    for model in models:
        prepared = prepare_image(volume, model.preprocessing)
        probability = probabilities_of_image(model, prepared.array, progress=progress)
        if total is None:
            total, grid = probability, prepared.grid
        else:
            total += _onto(probability, prepared.grid, grid)
    assert total is not None
    if len(models) > 1:
        total /= len(models)
    kept = frozenset(name for model in models for name in model.description.largest_component)
    calibration = calibration_of(models[0].description.card) if len(models) == 1 else None
    return Prediction(
        structures=models[0].structures,
        probability=total,
        grid=grid,
        largest_component=kept,
        calibration=calibration,
    )


def entropy_on_grid(prediction: Prediction, grid: Grid) -> FloatArray:
    """Where the models are in doubt: the largest entropy of any structure, (Z, Y, X) in [0, 1] bits."""
    largest = np.zeros(prediction.grid.shape_zyx, dtype=np.float32)
    for probability in prediction.probability:
        np.maximum(largest, entropy_bits(probability), out=largest)
    return np.asarray(resample(Volume(largest, prediction.grid), grid).array, dtype=np.float32)


def probabilities_of_image(
    model: Model, image: Array, prior: Prior | None = None, *, progress: Progress = no_progress
) -> FloatArray:
    """Probabilities (S, Z, Y, X) of a prepared image: one pass where the memory allows, else windows.

    Raises:
        ConfigurationError: A network for adaptation without a prior, or a prior for one that takes none.
    """
    if model.description.takes_prior != (prior is not None):
        raise ConfigurationError(
            "model: this one refines the contours of an earlier day and cannot contour by itself. Use it "
            "with consilium adapt --model."
            if prior is None
            else "model: this one takes no earlier contours; train one with consilium train --adaptation."
        )
    window = choose_window(model, (image.shape[0], image.shape[1], image.shape[2]))
    if window is None:
        return predict_whole(model, image, prior)
    return predict_windows(model, image, window, prior=prior, progress=progress)


def choose_window(model: Model, shape_zyx: Shape, *, memory_bytes: int | None = None) -> Shape | None:
    """None if the image goes through in one pass; else the shape of the windows.

    A model that was trained on patches sees windows of that shape: borders look as they did in training.

    Raises:
        MemoryPlanError: Not even a small window fits.
    """
    window = model.description.window_zyx
    if window is not None:
        return window
    config = model.description.network
    usable = MEMORY_SHARE * (available_memory_bytes(model.device) if memory_bytes is None else memory_bytes)
    shape = list(shape_zyx)
    while (needed := predict_inference_bytes(config, (shape[0], shape[1], shape[2]))) > usable:
        if max(shape) < SMALLEST_WINDOW:
            raise MemoryPlanError(
                f"contouring: even a window of {tuple(shape)} voxels must fit in the memory; it needs "
                f"{needed / 2**20:.0f} MiB and {usable / 2**20:.0f} MiB are at hand. Close other programs."
            )
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return None if tuple(shape) == tuple(shape_zyx) else (shape[0], shape[1], shape[2])


def _onto(probability: FloatArray, source: Grid, target: Grid) -> FloatArray:
    if source.is_same_as(target):
        return probability
    return np.stack([resample(Volume(channel, source), target).array for channel in probability])
