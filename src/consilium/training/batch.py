"""Which case comes at which step, which part of it, changed how: decided by the seed and the step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilium.geometry.crop import Box, crop_or_pad
from consilium.geometry.volume import Grid
from consilium.inference.preprocess import to_channels, to_prior_channels
from consilium.training.augment import Augmentation, Change, apply_change, choose_change, swap_sides
from consilium.training.data import PreparedCase, unpack_structures
from consilium.training.earlier_day import earlier_day
from consilium.types import Array, Shape, Triple

FOREGROUND_SHARE = 0.5
"""Share of patches whose middle is a voxel of a structure (nnU-Net: one third)."""

ORDER, CHANGES = 1, 2
"""Keep the streams of random numbers for different purposes apart."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from.

    Args:
        image: (B, C, Z, Y, X) float32.
        reference: (B, S, Z, Y, X) bool.
        known: (B, S) bool.
        case_ids: Of the B samples.
    """

    image: Tensor
    reference: Tensor
    known: Tensor
    case_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BatchRecipe:
    """How batches are made.

    Args:
        structures: Number of structures.
        windows: Channels, see `consilium.inference.preprocess.Preprocessing`.
        batch: Samples per step; 1 for whole volumes, whose shapes differ.
        patch_zyx: Voxels of a patch; None for whole volumes.
        mirror: Which structure each one becomes in a mirrored image; None if nothing may be mirrored.
        augmentation: Ranges of the random changes.
        seed: Of all randomness here.
        focus: Per structure, how much it draws the middles of patches; empty: all alike.
        adaptation: Whether channels of an earlier day stand behind the image's own.
    """

    structures: int
    windows: tuple[tuple[float, float], ...]
    batch: int
    patch_zyx: Shape | None
    mirror: tuple[int, ...] | None
    augmentation: Augmentation
    seed: int
    focus: tuple[float, ...] = ()
    adaptation: bool = False


def make_batch(
    recipe: BatchRecipe, cases: Sequence[PreparedCase], step: int, *, part: int = 0, parts: int = 1
) -> Batch:
    """The batch of a step: the same whenever it is asked for.

    Args:
        recipe: How it is made.
        cases: Of the training.
        step: Which one.
        part: Which of ``parts`` workers asks. The parts together are the batch of a recipe whose batch is
            ``parts`` times as large.
        parts: How many workers there are.
    """
    chosen = list(enumerate(choose_cases(cases, step, recipe.batch * parts, recipe.seed)))
    samples = [
        _make_sample(recipe, case, np.random.default_rng([recipe.seed, CHANGES, step, place]))
        for place, case in chosen[part * recipe.batch : (part + 1) * recipe.batch]
    ]
    return Batch(
        image=torch.stack([image for image, _, _, _ in samples]),
        reference=torch.from_numpy(np.stack([masks for _, masks, _, _ in samples])),
        known=torch.from_numpy(np.stack([known for _, _, known, _ in samples])),
        case_ids=tuple(case_id for _, _, _, case_id in samples),
    )


def choose_cases(cases: Sequence[PreparedCase], step: int, batch: int, seed: int) -> list[PreparedCase]:
    """The cases of a step: every epoch visits each case once, in a new order."""
    chosen = []
    for number in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(number, len(cases))
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(cases))
        chosen.append(cases[int(order[place])])
    return chosen


def _make_sample(
    recipe: BatchRecipe, case: PreparedCase, rng: np.random.Generator
) -> tuple[Tensor, Array, Array, str]:
    change = choose_change(recipe.augmentation, rng, may_mirror=recipe.mirror is not None)
    shape = recipe.patch_zyx or case.shape_zyx
    if recipe.patch_zyx is None:
        middle: Triple = _middle(case.shape_zyx)
    else:
        middle = _choose_middle(case, recipe, recipe.patch_zyx, rng)
    spacing = case.grid.spacing_zyx_mm
    box = _reach(change, middle, shape, case.grid)
    image = np.ascontiguousarray(crop_or_pad(case.image[box.slices()], _whole(box)))
    bits = case.bits[(slice(None), *box.slices())]
    local = tuple(m - s for m, s in zip(middle, box.start_zyx, strict=True))
    new_image, new_bits = apply_change(
        change,
        image,
        bits,
        spacing_zyx_mm=spacing,
        centre_zyx=(local[0], local[1], local[2]),
        shape_zyx=shape,
    )
    masks, known = unpack_structures(new_bits, recipe.structures), case.known
    if change.mirror:
        masks, known = swap_sides(masks, recipe.mirror), swap_sides(known, recipe.mirror)
    channels = to_channels(torch.from_numpy(new_image), recipe.windows)
    if recipe.adaptation:
        prior = earlier_day(new_image, masks, known, spacing_zyx_mm=spacing, rng=rng)
        channels = torch.cat([channels, to_prior_channels(prior, recipe.windows)])
    return channels, masks, known, case.case_id


def _choose_middle(
    case: PreparedCase, recipe: BatchRecipe, patch_zyx: Shape, rng: np.random.Generator
) -> Triple:
    """The middle of a patch: half of the time a voxel of a known structure, else anywhere inside."""
    present = [s for s, points in enumerate(case.points) if case.known[s] and len(points)]
    foreground = rng.random() < FOREGROUND_SHARE
    drawn = rng.random(3)
    if present and foreground:
        focus = np.array([recipe.focus[s] if recipe.focus else 1.0 for s in present])
        chosen = present[int(np.searchsorted(np.cumsum(focus), rng.random() * focus.sum(), side="right"))]
        points = case.points[chosen]
        wanted = points[int(rng.integers(len(points)))].astype(float)
    else:
        wanted = drawn * (np.asarray(case.shape_zyx) - 1)
    # A patch that reaches far beyond the image teaches air: its middle is moved inside where it fits.
    low = np.minimum((np.asarray(patch_zyx) - 1) / 2, (np.asarray(case.shape_zyx) - 1) / 2)
    high = np.asarray(case.shape_zyx) - 1 - low
    z, y, x = np.clip(wanted, low, high)
    return float(z), float(y), float(x)


def _middle(shape_zyx: Shape) -> Triple:
    z, y, x = shape_zyx
    return (z - 1) / 2, (y - 1) / 2, (x - 1) / 2


def _whole(box: Box) -> Box:
    return Box((0, 0, 0), box.shape_zyx)


def _reach(change: Change, middle_zyx: Triple, shape_zyx: Shape, grid: Grid) -> Box:
    """The box of voxels that a changed patch is interpolated from; at least one, wherever the patch lies."""
    spacing = np.asarray(grid.spacing_zyx_mm)
    half = (np.asarray(shape_zyx) - 1) / 2 * spacing
    reach = (np.abs(change.linear) @ half) / spacing
    centre = np.asarray(middle_zyx) + np.asarray(change.shift_mm) / spacing
    size = np.asarray(grid.shape_zyx)
    low = np.clip(np.floor(centre - reach).astype(int) - 1, 0, size - 1)
    high = np.clip(np.ceil(centre + reach).astype(int) + 2, low + 1, size)
    return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))
