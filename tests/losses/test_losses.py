"""Losses against closed forms and finite differences; unknown structures get exactly nothing."""

import math

import pytest
import torch
from torch import Tensor

from consilium.errors import ConfigurationError
from consilium.losses.cross_entropy import cross_entropy_loss
from consilium.losses.dice import SMOOTHING, dice_loss
from consilium.losses.multiscale import (
    MultiScaleLoss,
    blend_weights,
    downsample_reference,
    infer_stride,
    structure_loss,
)

KNOWN = torch.tensor([[True, False, True], [True, True, False]])


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_case() -> tuple[Tensor, Tensor]:
    return draw(2, 3, 5, 6, 7), draw(2, 3, 5, 6, 7, seed=2) > 0.5


def test_cross_entropy_of_logit_zero_is_log_two() -> None:
    _, reference = draw_case()
    assert cross_entropy_loss(torch.zeros(2, 3, 5, 6, 7), reference, KNOWN).item() == pytest.approx(
        math.log(2)
    )


def test_cross_entropy_is_finite_and_linear_for_huge_logits() -> None:
    reference = torch.zeros(1, 1, 2, 2, 2)
    known = torch.ones(1, 1, dtype=torch.bool)
    assert cross_entropy_loss(torch.full((1, 1, 2, 2, 2), 1e4), reference, known).item() == pytest.approx(1e4)
    assert cross_entropy_loss(torch.full((1, 1, 2, 2, 2), -1e4), reference, known).item() == 0.0


def test_dice_of_a_known_overlap_is_the_closed_form() -> None:
    logits, reference = torch.full((1, 1, 4, 4, 4), -50.0), torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    logits[..., :2], reference[..., 1:3] = 50.0, True
    expected = 1.0 - (2 * 16 + SMOOTHING) / (32 + 32 + SMOOTHING)
    loss = dice_loss(logits, reference, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dice_is_summed_over_the_batch() -> None:
    logits, reference = draw_case()
    known = torch.ones(2, 3, dtype=torch.bool)
    joined = dice_loss(
        torch.cat([logits[:1], logits[1:]], dim=2), torch.cat([reference[:1], reference[1:]], 2), known[:1]
    )
    torch.testing.assert_close(dice_loss(logits, reference, known), joined)


def test_dice_leaves_out_a_structure_that_the_batch_does_not_hold() -> None:
    logits, reference = draw_case()
    reference[:, 0] = False
    logits.requires_grad_()
    known = torch.ones(2, 3, dtype=torch.bool)
    loss = dice_loss(logits, reference, known)
    loss.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[:, 0]) == 0
    torch.testing.assert_close(
        loss.detach(), dice_loss(logits[:, 1:].detach(), reference[:, 1:], known[:, 1:])
    )


@pytest.mark.parametrize("loss", [dice_loss, cross_entropy_loss, structure_loss])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_equals_finite_differences(loss: object, soft: bool) -> None:
    logits, reference = draw_case()
    target = reference.double() * 0.7 if soft else reference
    before = target.clone()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, KNOWN), logits.requires_grad_())  # type: ignore[operator]
    assert torch.equal(target, before)


@pytest.mark.parametrize("loss", [dice_loss, cross_entropy_loss, structure_loss])
def test_unknown_structures_get_exactly_zero_gradient_whatever_they_hold(loss: object) -> None:
    logits, reference = draw_case()
    clean = logits.clone().requires_grad_()
    value = loss(clean, reference, KNOWN)  # type: ignore[operator]
    value.backward()
    spoilt = logits.clone()
    spoilt[~KNOWN] = float("nan")
    spoilt.requires_grad_()
    other = reference.clone()
    other[~KNOWN] = ~other[~KNOWN]
    again = loss(spoilt, other, KNOWN)  # type: ignore[operator]
    again.backward()
    assert clean.grad is not None
    assert spoilt.grad is not None
    assert torch.equal(value, again)
    assert torch.equal(clean.grad, spoilt.grad)
    assert torch.equal(clean.grad[~KNOWN], torch.zeros_like(clean.grad[~KNOWN]))
    assert torch.count_nonzero(clean.grad[KNOWN]) > 0


def test_nothing_known_gives_zero_and_zero_gradient() -> None:
    logits, reference = draw_case()
    logits.requires_grad_()
    loss = structure_loss(logits, reference, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_slabs_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, reference = draw_case()
    whole = structure_loss(logits, reference, KNOWN)
    monkeypatch.setattr("consilium.losses.partial._SLAB_VOXELS", 30)
    torch.testing.assert_close(structure_loss(logits, reference, KNOWN), whole)


def test_misfitting_target_is_refused() -> None:
    logits, reference = draw_case()
    with pytest.raises(ConfigurationError, match="reference must have the logits' shape"):
        structure_loss(logits, reference[:, :2], KNOWN)
    with pytest.raises(ConfigurationError, match="known must be boolean"):
        structure_loss(logits, reference, KNOWN.float())


def draw_scales() -> list[Tensor]:
    shapes = ((5, 6, 7), (3, 3, 4), (2, 2, 2))
    return [draw(2, 3, *shape, seed=s).requires_grad_() for s, shape in enumerate(shapes)]


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (1.0,)])
def test_weight_on_the_finest_scale_alone_equals_the_single_scale_loss_bit_for_bit(
    weights: tuple[float, ...],
) -> None:
    logits = [one.detach().float().requires_grad_() for one in draw_scales()]
    _, reference = draw_case()
    several = MultiScaleLoss(weights)(logits[: len(weights)], reference, KNOWN)
    single = structure_loss(logits[0], reference, KNOWN)
    assert torch.equal(several, single)
    gradients = [torch.autograd.grad(loss, logits[0])[0] for loss in (several, single)]
    assert torch.equal(gradients[0], gradients[1])


def test_scales_add_up_with_their_weights() -> None:
    logits, (_, reference) = draw_scales(), draw_case()
    expected = sum(
        weight * structure_loss(one, downsample_reference(reference.double(), one.shape[2:]), KNOWN)
        for weight, one in zip((0.5, 0.3, 0.2), logits, strict=True)
    )
    total = MultiScaleLoss((0.5, 0.3, 0.2))(logits, reference.double(), KNOWN)
    torch.testing.assert_close(total, expected)


def test_learned_weights_move_towards_the_inverse_of_each_scale_s_loss() -> None:
    loss = MultiScaleLoss("learned", scales=3)
    logits, (_, reference) = [one.detach() for one in draw_scales()], draw_case()
    single = [
        structure_loss(one, downsample_reference(reference.float(), one.shape[2:]).double(), KNOWN).item()
        for one in logits
    ]
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.3)
    for _ in range(200):
        optimiser.zero_grad()
        loss(logits, reference, KNOWN).backward()
        optimiser.step()
    assert loss.weights == pytest.approx([1.0 / one for one in single], rel=1e-3)
    with pytest.raises(ConfigurationError, match="cannot be set"):
        loss.set_weights((1.0, 0.0, 0.0))


def test_schedule_blends_weights() -> None:
    assert blend_weights((0.0, 1.0), (1.0, 0.0), 0.25) == (0.25, 0.75)
    loss = MultiScaleLoss((0.0, 1.0))
    loss.set_weights(blend_weights((0.0, 1.0), (1.0, 0.0), 2.0))
    assert loss.weights == (1.0, 0.0)


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (-1.0, 2.0), (math.nan,), "uniform"])
def test_weights_that_cannot_be_are_refused(weights: object) -> None:
    with pytest.raises(ConfigurationError, match="weights must be"):
        MultiScaleLoss(weights)  # type: ignore[arg-type]


def test_downsampled_reference_is_the_share_of_each_block() -> None:
    reference = torch.zeros(1, 1, 3, 4, 5, dtype=torch.bool)
    reference[0, 0, 2] = True
    reference[0, 0, 0, 0, 0] = True
    coarse = downsample_reference(reference, (2, 2, 3))
    assert coarse[0, 0, 0, 0, 0].item() == 0.125
    assert torch.equal(coarse[0, 0, 1], torch.ones(2, 3))
    assert torch.equal(
        downsample_reference(reference, (2, 2, 3), largest=True)[0, 0, 0, 0], torch.tensor([1.0, 0, 0])
    )


def test_an_image_smaller_than_a_coarse_voxel_has_the_share_of_what_there_is() -> None:
    reference = torch.zeros(1, 1, 5, 6, 7, dtype=torch.bool)
    reference[..., :3] = True
    assert downsample_reference(reference, (1, 1, 1)).flatten().tolist() == pytest.approx([3 / 7])


def test_downsampling_by_slabs_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = draw(2, 3, 9, 10, 11).abs().clamp(max=1)
    whole = downsample_reference(reference, (3, 3, 3))
    monkeypatch.setattr("consilium.losses.multiscale._SLAB_VOXELS", 1)
    assert torch.equal(downsample_reference(reference, (3, 3, 3)), whole)


def test_slices_of_two_dimensions_have_scales_too() -> None:
    reference = draw(2, 3, 9, 10).abs() > 0.5
    logits = [draw(2, 3, 9, 10), draw(2, 3, 5, 5)]
    assert MultiScaleLoss((0.5, 0.5))(logits, reference, KNOWN).isfinite()
    assert downsample_reference(reference, (5, 5)).shape == (2, 3, 5, 5)


def test_stride_is_the_power_of_two_that_fits() -> None:
    assert infer_stride((100, 65, 1), (25, 17, 1)) == (4, 4, 1)
    with pytest.raises(ConfigurationError, match="ceil"):
        infer_stride((100,), (33,))
