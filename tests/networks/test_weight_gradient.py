"""Our kernel for the weight gradient against float64, and with any number of threads."""

import pytest
import torch
from torch.nn import functional

from consilium.networks import weight_gradient
from consilium.networks.convolution import convolve, convolve_backward
from consilium.networks.weight_gradient import compute_weight_gradient
from tests.networks.small import draw_image

SHAPES = [
    # batch, channels, sizes, outputs, kernel, stride
    (1, 16, (9, 10, 11), 16, (3, 3, 3), (1, 1, 1)),
    (2, 5, (9, 10, 11), 24, (1, 3, 3), (1, 2, 2)),
    (1, 1, (8, 8, 8), 16, (3, 3, 3), (2, 2, 2)),
    (2, 7, (4, 5, 3), 8, (5, 1, 3), (2, 1, 2)),
    (1, 3, (1, 6, 7), 40, (1, 1, 1), (1, 1, 1)),
    (1, 4, (1, 1, 1), 8, (3, 3, 3), (1, 1, 1)),
]


@pytest.mark.parametrize(("batch", "before", "sizes", "after", "kernel", "stride"), SHAPES)
def test_weight_gradient_equals_autograd_in_float64(
    batch: int,
    before: int,
    sizes: tuple[int, int, int],
    after: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
) -> None:
    image = draw_image(batch, before, *sizes)
    weight = draw_image(after, before, *kernel, seed=2).requires_grad_()
    result = functional.conv3d(image, weight, stride=stride, padding=[k // 2 for k in kernel])
    grad = draw_image(*result.shape, seed=3)
    (expected,) = torch.autograd.grad(result, weight, grad)
    found = compute_weight_gradient(grad.float(), image.float(), weight.float(), stride)
    assert ((found - expected).norm() / expected.norm()).item() <= 1e-6


def test_weight_gradient_is_the_same_bit_for_bit_with_two_threads() -> None:
    image, weight = draw_image(1, 12, 20, 21, 22).float(), draw_image(24, 12, 3, 3, 3).float()
    grad = draw_image(1, 24, 20, 21, 22, seed=3).float()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(compute_weight_gradient(grad, image, weight, (1, 1, 1)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("suited", [True, False])
def test_both_ways_to_the_gradients_agree_with_float64(suited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradient, "is_processor_suited", lambda: suited)
    image, weight = draw_image(1, 16, 7, 8, 9), draw_image(16, 16, 3, 3, 3, seed=2)
    grad = draw_image(1, 16, 7, 8, 9, seed=3)
    exact = convolve_backward(grad, image, weight)
    found = convolve_backward(grad.float(), image.float(), weight.float())
    for one, other in zip(found, exact, strict=True):
        assert one is not None
        assert other is not None
        assert ((one - other).norm() / other.norm()).item() <= 1e-6
    assert torch.isfinite(convolve(image.float(), weight.float())).all()
