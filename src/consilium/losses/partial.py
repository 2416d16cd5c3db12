"""Sums over voxels per structure in one lean pass, from which every loss follows; unknown ones untouched."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from consilium.errors import ConfigurationError

_SLAB_VOXELS = 2**18
"""Voxels worked on at once: the temporary arrays stay in the cache and out of the memory peak."""


class StructureSums(NamedTuple):
    """Sums over the voxels of each sample and structure, (B, S) each, zero where unknown.

    ``overlap`` sums probability times reference, ``predicted`` the probability, ``reference`` the reference,
    ``entropy`` the cross-entropy in nats; ``voxels`` is the number of voxels, zero where unknown.
    """

    overlap: Tensor
    predicted: Tensor
    reference: Tensor
    entropy: Tensor
    voxels: Tensor


def check_target(logits: Tensor, reference: Tensor, known: Tensor) -> None:
    """Refuse a reference or a table of known structures that does not fit the logits.

    Raises:
        ConfigurationError: Shapes differ, or ``known`` is not boolean.
    """
    if reference.shape != logits.shape:
        raise ConfigurationError(
            f"loss: the reference must have the logits' shape {tuple(logits.shape)}; "
            f"got {tuple(reference.shape)}."
        )
    if known.shape != logits.shape[:2] or known.dtype != torch.bool:
        raise ConfigurationError(
            f"loss: known must be boolean of shape {tuple(logits.shape[:2])}; "
            f"got {known.dtype} of shape {tuple(known.shape)}."
        )


def compute_structure_sums(logits: Tensor, reference: Tensor, known: Tensor) -> StructureSums:
    """The sums that Dice and cross-entropy are made of.

    Args:
        logits: (B, S, Z, Y, X) or (B, S, Y, X), floating.
        reference: Same shape, boolean or in [0, 1]; whatever it holds where unknown is never read.
        known: (B, S) boolean. Where False the gradient by the logits is exactly zero, even for NaN logits.

    Raises:
        ConfigurationError: From `check_target`.
    """
    check_target(logits, reference, known)
    sums = _StructureSums.apply(logits, reference, known)  # type: ignore[no-untyped-call]
    voxels = known.to(sums.dtype) * logits[0, 0].numel()
    return StructureSums(sums[..., 0], sums[..., 1], sums[..., 2], sums[..., 3], voxels)


def _slabs(volume: Tensor) -> Iterator[slice]:
    """Slices along the first axis of about `_SLAB_VOXELS` voxels."""
    step = max(1, _SLAB_VOXELS * len(volume) // max(volume.numel(), 1))
    for start in range(0, len(volume), step):
        yield slice(start, start + step)


class _StructureSums(torch.autograd.Function):
    """Forward (B, S, 4): overlap, predicted, reference, entropy; backward recomputes the sigmoid by slabs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor, known: Tensor) -> Tensor:
        sums = torch.zeros(*known.shape, 4, dtype=torch.float64, device=logits.device)
        pairs = [(int(b), int(s)) for b, s in torch.nonzero(known).tolist()]
        for b, s in pairs:
            for slab in _slabs(logits[b, s]):
                value, inside = logits[b, s, slab], reference[b, s, slab].to(logits.dtype)
                probability = torch.sigmoid(value)
                entropy = functional.binary_cross_entropy_with_logits(value, inside, reduction="sum")
                overlap = torch.sum(probability * inside)
                sums[b, s] += torch.stack([overlap, probability.sum(), inside.sum(), entropy]).double()
        ctx.save_for_backward(logits, reference)
        ctx.pairs = pairs
        return sums.to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, reference = ctx.saved_tensors
        by_logits = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for b, s in ctx.pairs:
            by_overlap, by_predicted, _, by_entropy = grad[b, s].tolist()
            for slab in _slabs(logits[b, s]):
                inside = reference[b, s, slab].to(logits.dtype)
                probability = torch.sigmoid(logits[b, s, slab])
                out = by_logits[b, s, slab]
                torch.sub(probability, inside, out=out)
                out.mul_(by_entropy)
                slope = probability * (1.0 - probability)
                out.add_(slope.mul_(torch.mul(inside, by_overlap).add_(by_predicted)))
        return by_logits, None, None
