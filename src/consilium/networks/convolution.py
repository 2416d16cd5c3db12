"""Convolution that never falls into torch's slow small-volume path, and its gradients by hand."""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from consilium.networks.blocks import run_function
from consilium.networks.weight_gradient import can_accumulate, compute_weight_gradient

Triple: TypeAlias = tuple[int, int, int]
Pads: TypeAlias = list[int]

SLOW_BELOW = 20480
"""torch 2.13 convolves one float32 sample on a CPU without oneDNN when channels x Z x Y is at most this
(aten/src/ATen/native/Convolution.cpp, ``use_mkldnn``): six to fourteen times slower."""


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def is_slow(image: Tensor, weight: Tensor) -> bool:
    """Whether torch would pick its slow convolution for this image (B, C, Z, Y, X)."""
    if image.device.type != "cpu" or image.dtype != torch.float32 or image.shape[0] != 1:
        return False
    _, channels, size_z, size_y, _ = image.shape
    small = channels * size_z * size_y <= SLOW_BELOW
    large_kernel = weight.shape[-1] > 3 and weight.shape[-2] > 3
    return small and not large_kernel and _HAS_ONEDNN


def _needs_gradient(weight: Tensor) -> bool:
    return weight.requires_grad and torch.is_grad_enabled()


def _pads(weight: Tensor) -> Pads:
    return [k // 2 for k in weight.shape[2:]]


def convolve(
    image: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Triple = (1, 1, 1)
) -> Tensor:
    """Convolution with zero padding of half a kernel, differentiable.

    Args:
        image: (B, C, Z, Y, X).
        weight: (O, C, kz, ky, kx), odd kernel sizes.
        bias: (O,) or None.
        stride: Step along (z, y, x).

    Returns:
        (B, O, ceil(Z / sz), ceil(Y / sy), ceil(X / sx)) in the dtype of ``image``.
    """
    if is_slow(image, weight) or (can_accumulate(image, weight) and _needs_gradient(weight)):
        result: Tensor = run_function(_OneDnnConvolution, image, weight, bias, stride)
    else:
        result = functional.conv3d(image, weight, bias, stride=stride, padding=tuple(_pads(weight)))
    if image.shape[1] == 1:
        # One channel has no layout of its own, and torch would go on in channels-first.
        return result.contiguous(memory_format=torch.channels_last_3d)
    return result


def convolve_backward(
    grad: Tensor, image: Tensor, weight: Tensor, *, stride: Triple = (1, 1, 1), needs_image: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of `convolve` by ``image`` (or None where not needed) and ``weight``."""
    by_image = _differentiate_by_image(grad, image, weight, stride) if needs_image else None
    if can_accumulate(image, weight):
        return by_image, compute_weight_gradient(grad, image, weight, stride)
    return by_image, _differentiate(grad, image, weight, stride, [False, True, False])[1]


def _differentiate_by_image(grad: Tensor, image: Tensor, weight: Tensor, stride: Triple) -> Tensor:
    if stride == (1, 1, 1) and is_slow(image, weight):
        # A convolution with the mirrored kernel, which oneDNN runs in our layout without a copy.
        mirrored = weight.flip(2, 3, 4).transpose(0, 1).contiguous()
        result: Tensor = torch.mkldnn_convolution(grad, mirrored, None, _pads(weight), stride, [1, 1, 1], 1)
        return result
    return _differentiate(grad, image, weight, stride, [True, False, False])[0]


def _differentiate(
    grad: Tensor, image: Tensor, weight: Tensor, stride: Triple, wanted: list[bool]
) -> tuple[Tensor, ...]:
    if is_slow(image, weight):
        grad, image = grad.to_mkldnn(), image.to_mkldnn()
    found = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, _pads(weight), [1, 1, 1], False, [0, 0, 0], 1, wanted
    )
    return tuple(one.to_dense() if one is not None and one.is_mkldnn else one for one in found)


class _OneDnnConvolution(torch.autograd.Function):
    """`convolve` where torch would be slow: oneDNN called by name, and our own gradient by the weight."""

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple) -> Tensor:
        result: Tensor = torch.mkldnn_convolution(image, weight, bias, _pads(weight), stride, [1, 1, 1], 1)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, _, ctx.stride = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        image, weight = ctx.saved_tensors
        grad_image, grad_weight = convolve_backward(
            grad, image, weight, stride=ctx.stride, needs_image=ctx.needs_input_grad[0]
        )
        grad_bias = grad.sum(dim=(0, 2, 3, 4)) if ctx.needs_input_grad[2] else None
        return grad_image, grad_weight, grad_bias, None
