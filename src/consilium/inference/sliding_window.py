"""Overlapping windows over a volume that does not fit in one pass."""

import itertools
from collections.abc import Sequence

import numpy as np

from consilium.geometry.crop import Box, crop_or_pad
from consilium.inference.model import Model
from consilium.inference.preprocess import AIR, PRIOR_REACH_MM, Prior
from consilium.inference.whole_volume import predict_logits
from consilium.types import Array, FloatArray, Progress, Shape, no_progress

GAUSSIAN_WIDTH = 0.125
"""Standard deviation of the weights, in windows; nnU-Net's choice."""

SMALLEST_WEIGHT = 1e-3


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of windows that cover ``length``: evenly spread, neighbours share at least ``overlap``."""
    if length <= window:
        return [-((window - length) // 2)]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [round(k * (length - window) / (count - 1)) for k in range(count)]


def gaussian_weights(window_zyx: Shape) -> FloatArray:
    """(Z, Y, X) float32 weights, 1 in the middle, never below `SMALLEST_WEIGHT`."""
    axes = []
    for length in window_zyx:
        distance = (np.arange(length) - (length - 1) / 2) / (GAUSSIAN_WIDTH * length)
        axes.append(np.exp(-0.5 * distance**2))
    weights = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return np.asarray(np.maximum(weights, SMALLEST_WEIGHT), dtype=np.float32)


def predict_windows(
    model: Model,
    image: Array,
    window_zyx: Shape,
    *,
    prior: Prior | None = None,
    overlap: float = 0.5,
    progress: Progress = no_progress,
) -> FloatArray:
    """Probabilities (S, Z, Y, X), float32 in [0, 1], of a prepared image, averaged over windows.

    Args:
        model: The model.
        image: (Z, Y, X) int16.
        window_zyx: Shape of a window in voxels; an axis longer than the image is padded with air.
        prior: For a network for adaptation.
        overlap: Share of a window that its neighbour covers too, in [0, 1).
        progress: Told after each window.
    """
    shape: Sequence[int] = image.shape
    weights = gaussian_weights(window_zyx)
    total = np.zeros((len(model.structures), *shape), dtype=np.float32)
    weight_sum = np.zeros(image.shape, dtype=np.float32)
    starts = [window_starts(n, w, overlap) for n, w in zip(shape, window_zyx, strict=True)]
    corners = list(itertools.product(*starts))
    for done, (z, y, x) in enumerate(corners):
        box = Box((z, y, x), (z + window_zyx[0], y + window_zyx[1], x + window_zyx[2]))
        part = np.ascontiguousarray(crop_or_pad(image, box, AIR))
        known = None if prior is None else _prior_part(prior, box)
        probability = predict_logits(model, part, known).sigmoid().cpu().numpy()
        inside = box.clipped((image.shape[0], image.shape[1], image.shape[2]))
        index = inside.slices()
        local = tuple(
            slice(a - b, a - b + (c - a))
            for a, b, c in zip(inside.start_zyx, box.start_zyx, inside.stop_zyx, strict=True)
        )
        total[(slice(None), *index)] += probability[(slice(None), *local)] * weights[local]
        weight_sum[index] += weights[local]
        progress("contouring by windows", done + 1, len(corners))
    total /= weight_sum
    return total


def _prior_part(prior: Prior, box: Box) -> Prior:
    return Prior(
        image=crop_or_pad(prior.image, box, AIR), depth_mm=crop_or_pad(prior.depth_mm, box, -PRIOR_REACH_MM)
    )
