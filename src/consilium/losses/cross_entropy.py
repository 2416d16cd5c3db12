"""Binary cross-entropy per structure, mean over the known voxels."""

from torch import Tensor

from consilium.losses.partial import StructureSums, compute_structure_sums


def cross_entropy_from_sums(sums: StructureSums) -> Tensor:
    """Mean cross-entropy over the voxels of known structures, in nats; 0 when none is known."""
    return sums.entropy.sum() / sums.voxels.sum().clamp(min=1.0)


def cross_entropy_loss(logits: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid probabilities, stable for logits of any size.

    Args:
        logits: (B, S, Z, Y, X).
        reference: Same shape, boolean or in [0, 1].
        known: (B, S) boolean; unknown structures get exactly zero gradient.
    """
    return cross_entropy_from_sums(compute_structure_sums(logits, reference, known))
