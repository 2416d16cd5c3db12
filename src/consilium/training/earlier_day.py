"""An earlier day made from one case, as a registration would leave it: for training networks for adaptation.

The registration has laid the earlier day on today's image but for a residual. Here the residual is drawn: a
smooth random deformation of the case's own image and structures. So any dataset trains such a network; no
patient with two scans is needed.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.inference.preprocess import Prior, depth_in
from consilium.types import Array, Mask, Triple

WAVES_MM = (70.0, 28.0)
"""Distance between the knots of the coarse and the fine part of a residual."""

LARGEST_MM = (3.0, 3.0)
"""Standard deviation of the residual's parts at most, along each axis; each case draws its share of it. With
both about 4 mm in all: what the registration leaves in changed organs of phantom pelves is 1 to 3 mm."""

NOISE_HU = 25.0
"""Of the earlier image, at most: its noise is not today's."""

OFFSET_HU = 15.0


def earlier_day(
    image: Array, masks: Mask, known: Array, *, spacing_zyx_mm: Triple, rng: np.random.Generator
) -> Prior:
    """The earlier image and structures after an imperfect registration.

    Args:
        image: (Z, Y, X) today, in Hounsfield units.
        masks: (S, Z, Y, X) today.
        known: (S,): structures that are not known were not drawn on the earlier day either.
        spacing_zyx_mm: Of both.
        rng: Source of the residual and the noise.
    """
    at = _residual(image.shape, spacing_zyx_mm, rng)
    warped = _warp(torch.from_numpy(np.ascontiguousarray(image)).to(torch.float32)[None], at)[0].numpy()
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, NOISE_HU))
    drawn = _warp(torch.from_numpy(masks.astype(np.float32)), at).numpy() >= 0.5
    drawn[~np.asarray(known, dtype=np.bool_)] = False
    depth = np.stack([depth_in(mask, spacing_zyx_mm) for mask in drawn])
    return Prior(image=warped + noise + np.float32(rng.uniform(-OFFSET_HU, OFFSET_HU)), depth_mm=depth)


def _residual(shape: tuple[int, ...], spacing_zyx_mm: Triple, rng: np.random.Generator) -> Tensor:
    """Where each voxel is looked up, for `grid_sample`: (1, Z, Y, X, 3)."""
    size = [int(n) for n in shape]
    extent = [max(n - 1, 1) * s for n, s in zip(size, spacing_zyx_mm, strict=True)]
    field = torch.zeros((1, 3, *size))
    for wave, largest in zip(WAVES_MM, LARGEST_MM, strict=True):
        amount = largest * float(rng.random())
        knots = [max(2, round(length / wave) + 1) for length in extent]
        values = rng.normal(0, amount, (1, 3, *knots)).astype(np.float32)
        field += functional.interpolate(
            torch.from_numpy(values), size=size, mode="trilinear", align_corners=True
        )
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    scale = torch.tensor([2 / length for length in extent]).reshape(1, 3, 1, 1, 1)
    moved = (field * scale).permute(0, 2, 3, 4, 1).flip(-1)
    return torch.stack([x, y, z], dim=-1)[None] + moved


def _warp(channels: Tensor, at: Tensor) -> Tensor:
    found: Tensor = functional.grid_sample(
        channels[None], at, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found[0]
