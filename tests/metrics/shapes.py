"""Masks with known sizes for the metric tests."""

import numpy as np

from consilium.types import Mask, Shape, Triple


def box(shape: Shape, low: Shape, high: Shape) -> Mask:
    """A box of voxels ``low`` to ``high`` (exclusive)."""
    mask = np.zeros(shape, bool)
    mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


def ball(shape: Shape, centre: Triple, radius_mm: float, spacing_zyx_mm: Triple) -> Mask:
    """Voxels whose centre lies within ``radius_mm`` of ``centre`` (in voxels)."""
    axes = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing_zyx_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.asarray(z**2 + y**2 + x**2 <= radius_mm**2)


def speckle(rng: np.random.Generator, shape: Shape, share: float) -> Mask:
    """Random voxels: every neighbourhood code occurs."""
    return rng.random(shape) < share
