"""The deformable part of a registration: a stationary velocity field, found from coarse to fine."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilium.adaptation.images import PreparedImage
from consilium.types import FloatArray, Progress, Shape, no_progress

SQUARINGS = 6
LEAST_BLUR = 0.7
"""Voxels: every level is smoothed a little, or the field follows the noise."""

FLOOR = 1e-2
"""Slope of the misfit, in squared grey per mm over the whole image, below which a step gets shorter: where
there is nothing to see, nothing moves."""

BETAS = (0.9, 0.99)
"""Of Adam, written out here: torch.optim takes seconds to import."""


@dataclass(frozen=True, kw_only=True)
class DeformableConfig:
    """How the deformable registration looks for the field.

    Args:
        factors: How many voxels of the registration's grid one voxel of each level is long, coarse to fine.
        iterations: Steps of Adam per level.
        rates_mm: Learning rate per level: about how far the field moves in the first steps.
        smoothness: Weight of the squared derivative of the velocity (mm per mm).
        tether: Weight of the squared velocity (mm²): where nothing is to be seen, as along a smooth muscle,
            what the rigid movement says holds.
        width: Standard deviation of the Gaussian that a velocity is smoothed by, in voxels of its lattice,
            which is twice as coarse as the level.
        robust_grey: Differences beyond this many steps of 100 HU count less and less.
    """

    factors: tuple[int, ...] = (4, 2, 1)
    iterations: tuple[int, ...] = (60, 50, 30)
    rates_mm: tuple[float, ...] = (3.0, 1.2, 0.3)
    smoothness: float = 0.03
    tether: float = 3e-4
    width: float = 1.3
    robust_grey: float = 1.5


def register_deformable(
    planning: PreparedImage,
    repeat: PreparedImage,
    config: DeformableConfig | None = None,
    *,
    progress: Progress = no_progress,
) -> FloatArray:
    """The displacement (3, Z, Y, X) float32 in voxels (z, y, x) that lays the planning image on the repeat.

    The field is ``exp(v)`` of a smooth velocity v, by scaling and squaring: without folds as long as v is
    smooth between neighbouring voxels.

    Args:
        planning: Already moved rigidly, on the repeat's grid.
        repeat: On the same grid.
        config: By default measured on phantoms.
        progress: Told after each step.

    Source:
        Arsigny et al. 2006, MICCAI, "A log-Euclidean framework for statistics on diffeomorphisms".
    """
    config = config or DeformableConfig()
    shape = repeat.grid.shape_zyx
    voxels = torch.tensor(shape, dtype=torch.float32) - 1
    extent_mm = voxels.clamp(min=1) * torch.tensor(repeat.grid.spacing_zyx_mm)
    velocity: Tensor | None = None
    total, done = sum(config.iterations), 0
    for factor, iterations, rate in zip(config.factors, config.iterations, config.rates_mm, strict=True):
        level = _level(planning, repeat, _strides(factor, repeat.grid.spacing_zyx_mm))
        lattice = [-(-n // 2) if n > 3 else n for n in level.fixed.shape[2:]]
        descent = _Descent(level, _resized(velocity, lattice), extent_mm, config)
        for step in range(iterations):
            descent.step(rate * 0.5 * (1 + math.cos(math.pi * step / iterations)))
            progress("deformable registration", done := done + 1, total)
        velocity = descent.velocity().detach()
    assert velocity is not None
    with torch.no_grad():
        fraction = exponential(velocity)
        full = functional.interpolate(fraction, size=shape, mode="trilinear", align_corners=True)
        return np.ascontiguousarray((full[0] * voxels[:, None, None, None]).numpy())


@dataclass(frozen=True, eq=False)
class _Level:
    """Both images at one resolution, (1, 1, Z, Y, X), and where differences count."""

    fixed: Tensor
    moving: Tensor
    weight: Tensor
    seen: Tensor


def _strides(factor: int, spacing_zyx_mm: tuple[float, float, float]) -> Shape:
    """Voxels per axis that become one: coarse axes are left alone until the others have caught up."""
    target = factor * min(spacing_zyx_mm)
    z, y, x = (max(1, round(target / s)) for s in spacing_zyx_mm)
    return z, y, x


def _level(planning: PreparedImage, repeat: PreparedImage, strides: Shape) -> _Level:
    def coarser(array: FloatArray) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
        size = [max(2, -(-n // s)) if n > 1 else 1 for n, s in zip(array.shape, strides, strict=True)]
        sigmas = [max(LEAST_BLUR, 0.5 * (s**2 - 1) ** 0.5) for s in strides]
        blurs = [_gaussian_matrix(n, sigma) for n, sigma in zip(array.shape, sigmas, strict=True)]
        return functional.interpolate(smooth(image, blurs), size=size, mode="trilinear", align_corners=True)

    weight = coarser((repeat.body & repeat.seen).astype(np.float32))
    return _Level(
        fixed=coarser(repeat.grey),
        moving=coarser(planning.grey),
        weight=weight,
        seen=coarser(planning.seen.astype(np.float32)),
    )


class _Descent:
    """Adam on a field that is smoothed before it is added to a start.

    Velocities are in fractions of the grid's extent (z, y, x), so that they mean the same at every level; the
    field that is searched is in mm.
    """

    def __init__(self, level: _Level, start: Tensor, extent_mm: Tensor, config: DeformableConfig) -> None:
        self._level, self._start, self._config = level, start, config
        shape = torch.tensor(start.shape[2:], dtype=torch.float32)
        self._lattice_mm = extent_mm / (shape - 1).clamp(min=1)
        self._unit = (1 / extent_mm)[None, :, None, None, None]
        self._blurs = [_gaussian_matrix(n, config.width) for n in start.shape[2:]]
        self._free_mm = torch.zeros_like(start, requires_grad=True)
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
        self._steps = 0

    def velocity(self) -> Tensor:
        """As found so far."""
        return self._start + smooth(self._free_mm, self._blurs) * self._unit

    def step(self, rate_mm: float) -> None:
        """One step of Adam."""
        velocity = self.velocity()
        loss = _misfit(self._level, exponential(velocity), self._config)
        velocity_mm = velocity / self._unit
        loss = loss + self._config.smoothness * _roughness(velocity_mm, self._lattice_mm)
        loss = loss + self._config.tether * velocity_mm.square().sum(dim=1).mean()
        (slope,) = torch.autograd.grad(loss, self._free_mm)
        self._steps += 1
        with torch.no_grad():
            self._mean += (slope - self._mean) * (1 - BETAS[0])
            self._square += (slope.square() - self._square) * (1 - BETAS[1])
            mean = self._mean / (1 - BETAS[0] ** self._steps)
            square = self._square / (1 - BETAS[1] ** self._steps)
            self._free_mm -= rate_mm * mean / (square.sqrt() + FLOOR / self._free_mm.numel())


def _misfit(level: _Level, fraction: Tensor, config: DeformableConfig) -> Tensor:
    size = level.fixed.shape[2:]
    field = functional.interpolate(fraction, size=size, mode="trilinear", align_corners=True)
    at = _base(size) + 2 * field.permute(0, 2, 3, 4, 1).flip(-1)
    warped = functional.grid_sample(
        level.moving, at, mode="bilinear", padding_mode="border", align_corners=True
    )
    with torch.no_grad():
        seen = functional.grid_sample(
            level.seen, at, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        weight = level.weight * seen
    scale = config.robust_grey
    robust = torch.log1p(((warped - level.fixed) / scale) ** 2) * scale**2
    return (weight * robust).sum() / weight.sum().clamp(min=1)


def exponential(velocity: Tensor) -> Tensor:
    """The displacement of flowing along a velocity (1, 3, Z, Y, X) for unit time, by scaling and squaring.

    Both are in fractions of the grid's extent, components (z, y, x).
    """
    base = _base(velocity.shape[2:])
    field: Tensor = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        at = base + 2 * field.permute(0, 2, 3, 4, 1).flip(-1)
        field = field + functional.grid_sample(
            field, at, mode="bilinear", padding_mode="border", align_corners=True
        )
    return field


def _base(size: torch.Size) -> Tensor:
    """Identity for `grid_sample`, (1, Z, Y, X, 3): x, y, z from -1 to 1."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1)[None]


def _roughness(velocity_mm: Tensor, lattice_mm: Tensor) -> Tensor:
    """Mean squared derivative, (mm per mm)²."""
    total = velocity_mm.new_zeros(())
    for axis in range(3):
        if velocity_mm.shape[2 + axis] > 1:
            total = total + (velocity_mm.diff(dim=2 + axis) / lattice_mm[axis]).square().mean()
    return total * 3


def smooth(field: Tensor, blurs: list[Tensor]) -> Tensor:
    """Each axis of (1, 3, Z, Y, X) multiplied by its matrix."""
    field = torch.einsum("ij,bcjyx->bciyx", blurs[0], field)
    field = torch.einsum("ij,bczjx->bczix", blurs[1], field)
    result: Tensor = torch.einsum("ij,bczyj->bczyi", blurs[2], field)
    return result


def _gaussian_matrix(length: int, sigma: float) -> Tensor:
    """(length, length): a Gaussian of ``sigma`` voxels whose rows sum to 1, also at the ends."""
    place = torch.arange(length, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((place[:, None] - place) / max(sigma, 1e-3)) ** 2)
    return weight / weight.sum(dim=1, keepdim=True)


def _resized(velocity: Tensor | None, lattice: list[int]) -> Tensor:
    if velocity is None:
        return torch.zeros((1, 3, *lattice))
    return functional.interpolate(velocity, size=lattice, mode="trilinear", align_corners=True)
