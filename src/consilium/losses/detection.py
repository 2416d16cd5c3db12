"""What a detector learns from: centres and diameters as maps, and the loss against them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consilium.errors import ConfigurationError
from consilium.types import Shape, Triple

_NEAR = 0.4
"""Offset and size are learnt where the target score reaches this."""


@dataclass(frozen=True)
class DetectionTargets:
    """Maps on the detector's output grid.

    Attributes:
        score: (Z, Y, X) in [0, 1]; 1 in the voxel that holds a centre, falling off as a Gaussian.
        offset: (3, Z, Y, X) from the voxel's centre to the nearest thing's, in output voxels (z, y, x).
        log_size: (Z, Y, X) logarithm of its diameter in mm.
        ignored: (Z, Y, X) bool: neither learnt as a thing nor as none.
    """

    score: Tensor
    offset: Tensor
    log_size: Tensor
    ignored: Tensor


@dataclass(frozen=True, kw_only=True)
class DetectionLoss:
    """Settings of the loss.

    Args:
        hard_share: Share of the voxels without a thing, the hardest first, that count (hard-negative mining).
        offset_weight: Of the offset's absolute error, in output voxels.
        size_weight: Of the absolute error of the diameter's logarithm.

    Raises:
        ConfigurationError: A share outside (0, 1] or a negative weight.
    """

    hard_share: float = 0.02
    offset_weight: float = 1.0
    size_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.hard_share <= 1 or min(self.offset_weight, self.size_weight) < 0:
            raise ConfigurationError(
                f"detection loss: hard_share must be in (0, 1] and weights 0 or more; got {self}."
            )


def make_targets(
    shape_zyx: Shape,
    centres_zyx: Sequence[Triple],
    diameters_mm: Sequence[float],
    *,
    voxel_mm: Triple,
    ignored_zyx: Sequence[Triple] = (),
) -> DetectionTargets:
    """The maps for things at known places.

    Args:
        shape_zyx: Of the output grid.
        centres_zyx: Fractional indices on the output grid; outside it they are left out.
        diameters_mm: One per centre, > 0.
        voxel_mm: Of the output grid (z, y, x).
        ignored_zyx: Places about which nothing shall be learnt, within one voxel.
    """
    score = torch.zeros(shape_zyx)
    offset = torch.zeros(3, *shape_zyx)
    log_size = torch.zeros(shape_zyx)
    ignored = torch.zeros(shape_zyx, dtype=torch.bool)
    axes = [torch.arange(n, dtype=torch.float32) for n in shape_zyx]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    for centre, diameter in zip(centres_zyx, diameters_mm, strict=True):
        place = torch.tensor(centre)
        nearest = tuple(int(v) for v in torch.round(place))
        if not all(0 <= k < n for k, n in zip(nearest, shape_zyx, strict=True)):
            continue
        away = place[:, None, None, None] - grid
        sigma = [max(0.55, diameter / 6 / v) for v in voxel_mm]
        scaled = away / torch.tensor(sigma)[:, None, None, None]
        blob = torch.exp(-(scaled**2).sum(dim=0) / 2)
        blob[nearest] = 1.0
        closer = blob > score
        score = torch.where(closer, blob, score)
        offset = torch.where(closer, away, offset)
        log_size = torch.where(closer, torch.log(torch.tensor(float(diameter))), log_size)
    for centre in ignored_zyx:
        away = (torch.tensor(centre)[:, None, None, None] - grid).abs()
        ignored |= (away <= 1.0).all(dim=0) & (score < _NEAR)
    return DetectionTargets(score, offset, log_size, ignored)


def detection_loss(maps: Tensor, targets: Sequence[DetectionTargets], settings: DetectionLoss) -> Tensor:
    """Focal loss of the score over things and the hardest voxels without one, and L1 of offset and size.

    Args:
        maps: (B, 5, Z, Y, X) from a detector.
        targets: One per sample.
        settings: Weights.

    Returns:
        A scalar ≥ 0, per thing (per sample where a batch holds none).

    Source: Zhou et al. 2019, "Objects as Points", equation 1, with α = 2 and β = 4; hard negatives as in
    Shrivastava et al. 2016, "OHEM".
    """
    losses = []
    things = 0
    for sample, target in zip(maps, targets, strict=True):
        logit = sample[0]
        centre = target.score == 1.0
        things += int(centre.sum())
        probability = logit.sigmoid()
        found = (functional.softplus(-logit) * (1 - probability) ** 2)[centre].sum()
        wrong = functional.softplus(logit) * probability**2 * (1 - target.score) ** 4
        wrong = wrong[~centre & ~target.ignored]
        kept = max(1, round(settings.hard_share * wrong.numel()))
        hardest = wrong.topk(min(kept, wrong.numel())).values.sum()
        near = target.score >= _NEAR
        weight = target.score[near]
        total = weight.sum().clamp(min=1e-6)
        shift = ((sample[1:4] - target.offset).abs().sum(dim=0)[near] * weight).sum() / total
        size = ((sample[4] - target.log_size).abs()[near] * weight).sum() / total
        count = centre.sum()
        losses.append(
            found + hardest + count * (settings.offset_weight * shift + settings.size_weight * size)
        )
    return torch.stack(losses).sum() / max(things, len(losses))
