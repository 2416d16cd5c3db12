"""Soft Dice loss over the whole batch and volume."""

import torch
from torch import Tensor

from consilium.losses.partial import StructureSums, compute_structure_sums

SMOOTHING = 1.0
"""Voxels added to both counts: it bounds the gradient of structures of a few voxels."""


def dice_from_sums(sums: StructureSums) -> Tensor:
    """One minus the mean soft Dice of the structures that the batch holds.

    Overlaps and volumes are summed over the batch before the quotient (batch Dice). A structure without one
    reference voxel in the batch is left out: Dice would punish it the same for one false voxel as for a
    million, while cross-entropy already teaches where it is not.

    Returns:
        A scalar in [0, 1]; 0 with zero gradient when no structure is known and present.
    """
    overlap, predicted, reference = (
        part.sum(dim=0) for part in (sums.overlap, sums.predicted, sums.reference)
    )
    present = reference > 0
    dice = (2.0 * overlap + SMOOTHING) / (predicted + reference + SMOOTHING)
    loss: Tensor = torch.where(present, 1.0 - dice, 0.0).sum() / present.sum().clamp(min=1)
    return loss


def dice_loss(logits: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    """Soft Dice loss of sigmoid probabilities; see `dice_from_sums`.

    Args:
        logits: (B, S, Z, Y, X).
        reference: Same shape, boolean or in [0, 1].
        known: (B, S) boolean; unknown structures get exactly zero gradient.

    Source: Milletari, Navab, Ahmadi 2016, "V-Net", section 3, with first powers in the denominator.
    """
    return dice_from_sums(compute_structure_sums(logits, reference, known))
