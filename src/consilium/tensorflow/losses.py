"""Dice plus cross-entropy in TensorFlow, with partial labels, several scales and several workers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from consilium.errors import ConfigurationError
from consilium.tensorflow.blocks import Tensor, Triple

SMOOTHING = 1.0
"""As in `consilium.losses.dice`."""

Join = Callable[[Tensor], Tensor]
"""Sums a vector over all workers; the gradient flows to this worker's part only."""


class BatchSums(NamedTuple):
    """Sums over the voxels of the whole batch, per structure (S,) each, zero where unknown."""

    overlap: Tensor
    predicted: Tensor
    reference: Tensor
    entropy: Tensor
    voxels: Tensor


def compute_batch_sums(logits: Tensor, reference: Tensor, known: Tensor) -> BatchSums:
    """What Dice and cross-entropy are made of.

    Args:
        logits: (B, S, Z, Y, X), or (B, S, Y, X).
        reference: Same shape, boolean or in [0, 1]; whatever it holds where unknown is never read.
        known: (B, S) boolean. Where False the gradient by the logits is exactly zero, even for NaN logits.
    """
    axes = tuple(range(2, len(logits.shape)))
    told = tf.reshape(known, tf.concat([tf.shape(known), [1] * len(axes)], 0))
    value = tf.where(told, logits, tf.zeros_like(logits))
    inside = tf.where(told, tf.cast(reference, logits.dtype), tf.zeros_like(logits))
    overlap, predicted, entropy = _sums(value, inside)
    share = tf.cast(known, logits.dtype)
    voxels = tf.cast(tf.math.reduce_prod(tf.shape(logits)[2:]), logits.dtype)
    wanted = tf.reduce_sum(inside, axes)
    return BatchSums(
        *(tf.reduce_sum(part * share, 0) for part in (overlap, predicted, wanted, entropy, voxels))
    )


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _sums(logits: Tensor, reference: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Any]:
    """Per sample and structure (B, S): overlap, predicted, entropy; the backward pass recomputes."""
    axes = tuple(range(2, len(logits.shape)))
    probability = tf.sigmoid(logits)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=reference, logits=logits)
    sums = tuple(tf.reduce_sum(part, axes) for part in (probability * reference, probability, entropy))

    def gradient(*flows: Tensor) -> tuple[Tensor, None]:
        shape = tf.concat([tf.shape(flows[0]), [1] * len(axes)], 0)
        by_overlap, by_predicted, by_entropy = (tf.reshape(flow, shape) for flow in flows)
        chance = tf.sigmoid(logits)
        slope = chance * (1.0 - chance) * (reference * by_overlap + by_predicted)
        return (chance - reference) * by_entropy + slope, None

    return sums, gradient


def structure_loss(logits: Tensor, reference: Tensor, known: Tensor, *, join: Join | None = None) -> Tensor:
    """Soft Dice loss over the batch plus binary cross-entropy, as `consilium.losses.multiscale`.

    Args:
        logits: See `compute_batch_sums`.
        reference: Likewise.
        known: Likewise.
        join: Makes it the loss of all workers' batches together.
    """
    sums = compute_batch_sums(logits, reference, known)
    if join is not None:
        sums = BatchSums(*tf.unstack(join(tf.stack(sums)), num=len(sums)))
    present = sums.reference > 0
    dice = (2.0 * sums.overlap + SMOOTHING) / (sums.predicted + sums.reference + SMOOTHING)
    lost = tf.where(present, 1.0 - dice, tf.zeros_like(dice))
    found = tf.maximum(tf.reduce_sum(tf.cast(present, dice.dtype)), 1.0)
    entropy = tf.reduce_sum(sums.entropy) / tf.maximum(tf.reduce_sum(sums.voxels), 1.0)
    return tf.reduce_sum(lost) / found + entropy


def downsample_reference(
    reference: Tensor, stride: Triple, dtype: tf.DType, *, largest: bool = False
) -> Tensor:
    """The share of each block of voxels inside the structure; blocks at the end hold the voxels there are.

    Args:
        reference: (B, S, Z, Y, X), boolean or in [0, 1].
        stride: Voxels of a block.
        dtype: Of the result.
        largest: The maximum of each block instead.
    """
    sizes = tf.shape(reference)
    ends = [[0, -sizes[axis] % step] for axis, step in enumerate(stride, start=2)]
    # A boolean reference is averaged in float32 in both frameworks.
    kind = reference.dtype if reference.dtype.is_floating else tf.float32
    padded = tf.pad(tf.cast(reference, kind), [[0, 0], [0, 0], *ends])
    grown = tf.shape(padded)
    parts = [grown[0] * grown[1]]
    for axis, step in enumerate(stride, start=2):
        parts += [grown[axis] // step, step]
    blocks = tf.reshape(padded, parts)
    if largest:
        pooled = tf.reduce_max(blocks, (2, 4, 6))
    else:
        # A graph turns a plain division by a constant into a product with its reciprocal, which is rounded.
        pooled = tf.math.divide_no_nan(
            tf.reduce_sum(blocks, (2, 4, 6)), _voxels_of_blocks(sizes[2:], stride, kind)
        )
    pooled = tf.cast(pooled, dtype)
    return tf.reshape(pooled, tf.concat([sizes[:2], tf.shape(pooled)[1:]], 0))


def _voxels_of_blocks(sizes: Tensor, stride: Triple, dtype: tf.DType) -> Tensor:
    """How many voxels of the image each block holds, (Z', Y', X')."""
    counts = []
    for axis, step in enumerate(stride):
        starts = tf.range((sizes[axis] + step - 1) // step) * step
        counts.append(tf.cast(tf.minimum(step, sizes[axis] - starts), dtype))
    return counts[0][:, None, None] * counts[1][:, None] * counts[2]


class MultiScaleLoss(tf.Module):  # type: ignore[misc]
    """`structure_loss` at every scale that has logits, weighted; as `consilium.losses.multiscale`.

    Args:
        weights: One per scale, finest first; the start of learned ones is 1 each.
        strides: Voxels along (z, y, x) per voxel of each scale's logits.
        learned: Each scale's loss counts ``exp(-v) * loss + v`` with a learned ``v``, 0 at first.
        dtype: Kind of number.
        largest: See `downsample_reference`.
    """

    def __init__(
        self,
        weights: Sequence[float],
        strides: Sequence[Triple],
        *,
        learned: bool = False,
        dtype: tf.DType = tf.float32,
        largest: bool = False,
    ) -> None:
        super().__init__(name="loss")
        self.largest, self._strides = largest, tuple(strides)
        self._weights = (1.0,) * len(weights) if learned else tuple(float(w) for w in weights)
        if not self._weights or min(self._weights) < 0 or not any(self._weights):
            raise ConfigurationError(
                f"loss: weights must be not negative and not all zero, one per scale; got {tuple(weights)}."
            )
        self.log_variance = tf.Variable(tf.zeros(len(weights), dtype)) if learned else None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight on each scale now, finest first."""
        if self.log_variance is None:
            return self._weights
        return tuple(np.exp(-self.log_variance.numpy()).tolist())

    def __call__(
        self, logits: Sequence[Tensor], reference: Tensor, known: Tensor, *, join: Join | None = None
    ) -> Tensor:
        """The weighted sum over scales; arguments as `structure_loss`, logits finest first."""
        if len(logits) > len(self._weights):
            raise ConfigurationError(
                f"loss: a weight per scale is needed; got {len(self._weights)} for {len(logits)} logits."
            )
        flat, total = len(logits[0].shape) == 4, tf.zeros((), logits[0].dtype)
        for scale, one in enumerate(logits):
            if self._weights[scale] == 0.0:
                continue
            target = reference
            if scale:
                target = downsample_reference(
                    reference[:, :, None] if flat else reference,
                    self._strides[scale],
                    one.dtype,
                    largest=self.largest,
                )
                target = target[:, :, 0] if flat else target
            loss = structure_loss(one, target, known, join=join)
            if self.log_variance is None:
                total += loss * self._weights[scale]
            else:
                doubt = self.log_variance[scale]
                total += tf.exp(-doubt) * loss + doubt
        return total
