"""The invertible U-Net: a stem, the invertible trunk, and a head per scale."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from consilium.networks.blocks import (
    Triple,
    as_three,
    channels_to_space,
    crop,
    pad_to_multiple,
    run_function,
    space_to_channels,
)
from consilium.networks.config import NetworkConfig
from consilium.networks.convolution import convolve, convolve_backward
from consilium.networks.trunk import InvertibleTrunk, LinearHead


class Stem(nn.Module):
    """The image as the trunk's two halves: a convolution, behind voxels-to-channels for the squeeze stem."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        squeeze = config.stem == "squeeze"
        self.stride: Triple = as_three(config.stem_stride) if squeeze else (1, 1, 1)
        before = config.in_channels * math.prod(self.stride)
        self.weight = nn.Parameter(torch.empty(config.channels[0], before, *as_three(config.kernels[0])))
        self.bias = nn.Parameter(torch.zeros(config.channels[0]))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        self.lean, self.bf16 = config.reversible, config.bf16

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves (B, channels / 2, ...) of an image whose sizes are multiples of the stem's stride."""
        dtype = torch.bfloat16 if self.bf16 else image.dtype
        if not self.lean:
            return stem_value(image, self.weight, self.bias, stride=self.stride, dtype=dtype)
        first, second = run_function(_LeanStem, image, self.weight, self.bias, self.stride, dtype)
        return first, second


def _unfold(image: Tensor, stride: Triple, dtype: torch.dtype) -> Tensor:
    return space_to_channels(image.to(dtype), stride).contiguous(memory_format=torch.channels_last_3d)


def stem_value(
    image: Tensor, weight: Tensor, bias: Tensor, *, stride: Triple, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The two halves of the stem's output, in the image's dtype; differentiable."""
    unfolded = _unfold(image, stride, dtype)
    middle = len(bias) // 2
    # Two convolutions instead of one: the halves are born apart and are never copied.
    first, second = (
        convolve(unfolded, weight[part].to(dtype), bias[part].to(dtype)).to(image.dtype)
        for part in (slice(0, middle), slice(middle, None))
    )
    return first, second


class _LeanStem(torch.autograd.Function):
    """`stem_value` that keeps the image itself for the backward pass, not its unfolded copy."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, stride: Triple, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.dtype = stride, dtype
        return stem_value(image, weight, bias, stride=stride, dtype=dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        image, weight = ctx.saved_tensors
        unfolded = _unfold(image, ctx.stride, ctx.dtype)
        needs_image = bool(ctx.needs_input_grad[0])
        by_image: Tensor | None = None
        by_weight, by_bias = [], []
        for grad, part in zip((first, second), weight.chunk(2), strict=True):
            flow, piece = convolve_backward(
                grad.to(ctx.dtype), unfolded, part.to(ctx.dtype), needs_image=needs_image
            )
            by_weight.append(piece.to(weight.dtype))
            by_bias.append(grad.sum(dim=(0, 2, 3, 4)))
            if flow is not None:
                flow = channels_to_space(flow.to(image.dtype), ctx.stride)
                by_image = flow if by_image is None else by_image + flow
        return by_image, torch.cat(by_weight), torch.cat(by_bias), None, None


class IUNet(nn.Module):
    """The invertible U-Net.

    ``net(image)`` returns logits per scale, finest first, each (B, S, Z', Y', X') with sizes
    ``ceil(size / stride)``; the finest has the image's own size; only the finest outside training. Behind a
    squeeze stem the finest head writes one logit per voxel of the block that the stem joined.

    Source: Etmann, Ke, Schönlieb 2020, "iUNets: Fully invertible U-Nets with learnable up- and downsampling".
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.trunk = InvertibleTrunk(config)
        block = math.prod(self.stem.stride)
        self.heads = nn.ModuleList(
            LinearHead(channels, config.out_channels * (1 if scale else block))
            for scale, channels in enumerate(config.channels[: config.heads])
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits per scale, finest first.

        Args:
            image: (B, C, Z, Y, X), or (B, C, Y, X) for a network of two dimensions, any sizes.
        """
        flat = self.config.dims == 2
        if flat:
            image = image[:, :, None]
        sizes = image.shape[2:]
        heads = [self._head(scale) for scale in range(len(self.heads) if self.training else 1)]
        first, second = self.stem(pad_to_multiple(image, as_three(self.config.total_stride)))
        outputs = self.trunk(first, second, heads=heads, consume=True)
        del first, second
        logits = []
        stride: Triple = self.stem.stride
        for scale, output in enumerate(outputs):
            if scale == 0:
                output = channels_to_space(output, stride)
                logits.append(crop(output, sizes))
                continue
            stride = _times(stride, self.trunk.strides[scale - 1])
            logits.append(crop(output, [-(-size // step) for size, step in zip(sizes, stride, strict=True)]))
        return [one[:, :, 0] if flat else one for one in logits]

    def _head(self, scale: int) -> LinearHead:
        head = self.heads[scale]
        assert isinstance(head, LinearHead)
        return head


def _times(stride: Triple, step: Triple) -> Triple:
    return stride[0] * step[0], stride[1] * step[1], stride[2] * step[2]
