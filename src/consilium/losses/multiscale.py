"""Dice plus cross-entropy at one scale, and at several with a weight on each: given, scheduled or learned."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.errors import ConfigurationError
from consilium.losses.cross_entropy import cross_entropy_from_sums
from consilium.losses.dice import dice_from_sums
from consilium.losses.partial import StructureSums, compute_structure_sums

_SLAB_VOXELS = 2**21
"""Fine voxels averaged at once."""


Join = Callable[[Tensor], Tensor]
"""Puts the rows of all workers below this worker's; see `consilium.training.workers`."""


def structure_loss(logits: Tensor, reference: Tensor, known: Tensor, *, join: Join | None = None) -> Tensor:
    """The single-scale loss: soft Dice loss plus binary cross-entropy, both over known structures.

    Args:
        logits: (B, S, Z, Y, X).
        reference: Same shape, boolean or in [0, 1].
        known: (B, S) boolean; unknown structures get exactly zero gradient.
        join: Makes it the loss of the batches of all workers together.
    """
    sums = compute_structure_sums(logits, reference, known)
    if join is not None:
        sums = StructureSums(*join(torch.stack(sums, dim=-1)).unbind(-1))
    return dice_from_sums(sums) + cross_entropy_from_sums(sums)


def infer_stride(fine: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...]:
    """The smallest power of two per axis with ``coarse = ceil(fine / stride)``.

    Raises:
        ConfigurationError: There is none.
    """
    strides = []
    for size, reduced in zip(fine, coarse, strict=True):
        fits = [2**k for k in range(math.ceil(math.log2(size)) + 1) if -(-size // 2**k) == reduced]
        if not fits:
            raise ConfigurationError(
                f"loss: coarse logits must have ceil(size / 2^k) voxels along each axis; "
                f"got {tuple(coarse)} for {tuple(fine)}."
            )
        strides.append(fits[0])
    return tuple(strides)


def downsample_reference(reference: Tensor, coarse: Sequence[int], *, largest: bool = False) -> Tensor:
    """The reference at a coarser scale: the share of each block of voxels inside the structure.

    Args:
        reference: (B, S, Z, Y, X) or (B, S, Y, X), boolean or in [0, 1].
        coarse: Sizes wanted, ``ceil(size / 2^k)`` per axis; blocks at the end hold the voxels there are.
        largest: Take the maximum of each block instead, which keeps structures thinner than a block.

    Returns:
        (B, S, *coarse), float32 or the reference's own floating dtype, in [0, 1].
    """
    if reference.ndim == 4:
        return downsample_reference(reference[:, :, None], (1, *coarse), largest=largest)[:, :, 0]
    stride = infer_stride(reference.shape[2:], coarse)
    dtype = reference.dtype if reference.is_floating_point() else torch.float32
    out = torch.empty(*reference.shape[:2], *coarse, dtype=dtype, device=reference.device)
    rows = max(1, _SLAB_VOXELS // max(1, reference[0, :, :1].numel() * stride[0]))
    pool = functional.max_pool3d if largest else functional.avg_pool3d
    for sample in range(len(reference)):
        for start in range(0, coarse[0], rows):
            slab = reference[sample, :, start * stride[0] : (start + rows) * stride[0]].to(dtype)
            kernel = tuple(min(step, size) for step, size in zip(stride, slab.shape[1:], strict=True))
            out[sample, :, start : start + rows] = pool(slab, kernel, stride, ceil_mode=True)
    return out


class MultiScaleLoss(nn.Module):
    """`structure_loss` at every scale that has logits, weighted.

    At weights ``(1, 0, 0, …)`` it equals `structure_loss` of the finest logits bit for bit, value and
    gradient: scales of weight zero are not computed.

    Args:
        weights: One per scale, finest first, not negative and not all zero; or ``"learned"``: each scale's
            loss counts ``exp(-v) * loss + v`` with a learned ``v``, which starts at 0.
        scales: Number of scales; needed for learned weights only.
        largest: See `downsample_reference`.

    Source: Krebs et al. 2019 (multi-scale training with a weight on each scale); learned weights after
    Kendall, Gal, Cipolla 2018, "Multi-task learning using uncertainty to weigh losses", section 3.
    """

    def __init__(
        self, weights: Sequence[float] | str, *, scales: int | None = None, largest: bool = False
    ) -> None:
        super().__init__()
        self.largest = largest
        self.log_variance: nn.Parameter | None = None
        if isinstance(weights, str):
            if weights != "learned" or not scales:
                raise ConfigurationError(
                    "loss: weights must be numbers, or 'learned' with the number of scales; "
                    f"got {weights!r} and {scales}."
                )
            self.log_variance = nn.Parameter(torch.zeros(scales))
            self._weights: tuple[float, ...] = (1.0,) * scales
        else:
            self._weights = _check_weights(weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight on each scale now, finest first."""
        if self.log_variance is not None:
            return tuple(torch.exp(-self.log_variance.detach()).tolist())
        return self._weights

    def set_weights(self, weights: Sequence[float]) -> None:
        """Replace fixed weights, e.g. once per epoch by a schedule.

        Raises:
            ConfigurationError: The weights are learned, negative, or all zero.
        """
        if self.log_variance is not None:
            raise ConfigurationError("loss: learned weights cannot be set. Build it with fixed weights.")
        self._weights = _check_weights(weights)

    def forward(
        self, logits: Sequence[Tensor], reference: Tensor, known: Tensor, *, join: Join | None = None
    ) -> Tensor:
        """The weighted sum over scales.

        Args:
            logits: Per scale, finest first, (B, S, Z', Y', X'); fewer than weights is allowed (the weights of
                the missing scales are unused), so that a network in evaluation gives its finest loss.
            reference: (B, S, Z, Y, X) at the finest scale, boolean or in [0, 1].
            known: (B, S) boolean; unknown structures get exactly zero gradient.
            join: See `structure_loss`.
        """
        if len(logits) > len(self._weights):
            raise ConfigurationError(
                f"loss: a weight per scale is needed; got {len(self._weights)} for {len(logits)} logits."
            )
        total: Tensor | None = None
        for scale, one in enumerate(logits):
            if self._weights[scale] == 0.0:
                continue
            target = reference
            if one.shape != reference.shape:
                target = downsample_reference(reference, one.shape[2:], largest=self.largest)
            loss = self._weighted(scale, structure_loss(one, target, known, join=join))
            total = loss if total is None else total + loss
        if total is None:
            return logits[0].new_zeros(()) * logits[0].sum()
        return total

    def _weighted(self, scale: int, loss: Tensor) -> Tensor:
        if self.log_variance is None:
            return loss * self._weights[scale]
        doubt = self.log_variance[scale]
        return torch.exp(-doubt) * loss + doubt


def blend_weights(start: Sequence[float], end: Sequence[float], progress: float) -> tuple[float, ...]:
    """A schedule: the weights on the straight way from ``start`` to ``end`` at ``progress`` in [0, 1]."""
    share = min(max(progress, 0.0), 1.0)
    return tuple((1.0 - share) * a + share * b for a, b in zip(start, end, strict=True))


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    checked = tuple(float(w) for w in weights)
    if not checked or not all(w >= 0.0 and math.isfinite(w) for w in checked) or not any(checked):
        raise ConfigurationError(
            f"loss: weights must be finite, not negative and not all zero, one per scale; got {checked}."
        )
    return checked
