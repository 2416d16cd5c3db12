"""What both networks are made of: instance norm fast in channels-last, dropout, voxels <-> channels."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Triple: TypeAlias = tuple[int, int, int]

SLOPE = 0.01
"""Slope of the leaky ReLU below zero."""

EPSILON = 1e-5
"""Added to the variance in instance norm."""


def run_function(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, which torch leaves untyped."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


def instance_norm(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample to mean ``bias`` and standard deviation ``weight``.

    It runs as a batch norm over single samples: in channels-last layout, where bfloat16 convolution is
    fastest, torch's group and instance norm take up to 45 times as long backwards.
    """
    samples = [
        torch.batch_norm(sample, weight, bias, None, None, True, 0.0, EPSILON, True)
        for sample in image.split(1)  # type: ignore[no-untyped-call]
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def draw_channel_mask(image: Tensor, probability: float, seed: int) -> Tensor:
    """Dropout of whole channels (B, C, 1, 1, 1): 0 or 1 / (1 - probability), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(image.shape[:2], generator=generator, dtype=torch.float64) >= probability
    mask = drawn.to(device=image.device, dtype=image.dtype) / (1.0 - probability)
    return mask[:, :, None, None, None]


def draw_seed() -> int:
    """A seed from torch's global generator, so that `torch.manual_seed` decides dropout."""
    return int(torch.randint(2**62, ()).item())


def space_to_channels(image: Tensor, stride: Triple) -> Tensor:
    """(B, C, Z, Y, X) -> (B, C * r, Z / sz, Y / sy, X / sx); channel c * r + place in the block."""
    batch, channels, size_z, size_y, size_x = image.shape
    sz, sy, sx = stride
    split = image.reshape(batch, channels, size_z // sz, sz, size_y // sy, sy, size_x // sx, sx)
    moved = split.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return moved.reshape(batch, channels * math.prod(stride), size_z // sz, size_y // sy, size_x // sx)


def channels_to_space(image: Tensor, stride: Triple) -> Tensor:
    """The inverse of `space_to_channels`."""
    batch, channels, size_z, size_y, size_x = image.shape
    sz, sy, sx = stride
    kept = channels // math.prod(stride)
    split = image.reshape(batch, kept, sz, sy, sx, size_z, size_y, size_x)
    moved = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return moved.reshape(batch, kept, size_z * sz, size_y * sy, size_x * sx)


def pad_to_multiple(image: Tensor, stride: Triple) -> Tensor:
    """Repeat the last voxel along each axis until its size is a multiple of ``stride``."""
    pads = [-size % step for size, step in zip(image.shape[2:], stride, strict=True)]
    if not any(pads):
        return image
    return functional.pad(image, (0, pads[2], 0, pads[1], 0, pads[0]), mode="replicate")


def crop(image: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first ``sizes`` (Z, Y, X) voxels; the tensor itself where nothing is cut: a slice costs a copy."""
    for axis, size in enumerate(sizes, start=2):
        if image.shape[axis] != size:
            image = image.narrow(axis, 0, size)
    return image


def as_three(step: tuple[int, ...]) -> Triple:
    """A stride or kernel of two dimensions as one of three that leaves z alone."""
    return (1, step[0], step[1]) if len(step) == 2 else (step[0], step[1], step[2])
