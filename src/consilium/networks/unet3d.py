"""The 3D U-Net with today's defaults: strided convolution, instance norm, leaky ReLU, several heads."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from consilium.networks.blocks import (
    SLOPE,
    Triple,
    as_three,
    channels_to_space,
    crop,
    draw_channel_mask,
    draw_seed,
    instance_norm,
)
from consilium.networks.config import NetworkConfig
from consilium.networks.convolution import convolve


class Convolution(nn.Module):
    """Convolution, instance norm, leaky ReLU and channel dropout."""

    def __init__(
        self, config: NetworkConfig, channels: tuple[int, int], *, kernel: Triple, stride: Triple
    ) -> None:
        super().__init__()
        before, after = channels
        self.stride, self.dropout, self.bf16 = stride, config.dropout, config.bf16
        self.weight = nn.Parameter(torch.empty(after, before, *kernel))
        self.bias = nn.Parameter(torch.zeros(after))
        normed = config.norm == "instance"
        self.norm_weight = nn.Parameter(torch.ones(after)) if normed else None
        nn.init.kaiming_normal_(self.weight, a=SLOPE)

    def forward(self, image: Tensor) -> Tensor:
        weight: Tensor = self.weight.to(torch.bfloat16) if self.bf16 else self.weight
        bias = self.bias
        if self.norm_weight is None:
            image = convolve(image, weight, bias.to(weight.dtype), stride=self.stride)
        else:
            # A bias before the norm would be taken out again: the one bias acts behind it.
            image = instance_norm(convolve(image, weight, stride=self.stride), self.norm_weight, bias)
        image = functional.leaky_relu(image, SLOPE, inplace=True)
        if self.training and self.dropout:
            image = image * draw_channel_mask(image, self.dropout, draw_seed())
        return image


class Upsampling(nn.Module):
    """Transposed convolution whose kernel is its stride; weight (out, in, z, y, x)."""

    def __init__(self, config: NetworkConfig, channels: tuple[int, int], *, stride: Triple) -> None:
        super().__init__()
        self.stride, self.bf16 = stride, config.bf16
        self.weight = nn.Parameter(torch.empty(channels[1], channels[0], *stride))
        self.bias = nn.Parameter(torch.zeros(channels[1]))
        nn.init.normal_(self.weight, std=math.sqrt(1.0 / channels[0]))

    def forward(self, image: Tensor) -> Tensor:
        _, before = self.weight.shape[:2]
        weight = self.weight.flatten(2).transpose(1, 2).reshape(-1, before, 1, 1, 1)
        bias = self.bias.repeat_interleave(math.prod(self.stride))
        if self.bf16:
            weight, bias = weight.to(torch.bfloat16), bias.to(torch.bfloat16)
        return channels_to_space(convolve(image, weight, bias), self.stride)


class Head(nn.Module):
    """One logit per structure from a scale's features, in float32 or wider."""

    def __init__(self, channels: int, structures: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(structures, channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(structures))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, image: Tensor) -> Tensor:
        if image.dtype == torch.bfloat16:
            return convolve(image, self.weight.to(image.dtype), self.bias.to(image.dtype)).float()
        return convolve(image, self.weight, self.bias)


class UNet3d(nn.Module):
    """Encoder and decoder with skip connections.

    ``net(image)`` returns logits per scale, finest first, each (B, S, Z', Y', X') with sizes
    ``ceil(size / stride)``; only the finest outside training. Sizes need not be multiples of anything.

    Source: Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger 2016, "3D U-Net", section 2; the defaults follow
    Isensee et al. 2021, "nnU-Net", supplementary note 2.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        kernels = [as_three(k) for k in config.kernels]
        steps = [as_three(s) for s in config.resampling]
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.upsampling = nn.ModuleList()
        before = config.in_channels
        for scale, after in enumerate(config.channels):
            stride = steps[scale - 1] if scale else (1, 1, 1)
            self.encoder.append(self._stage(scale, before, kernels[scale], stride))
            before = after
        for scale in range(config.scales - 1):
            after = config.channels[scale]
            self.upsampling.append(
                Upsampling(config, (config.channels[scale + 1], after), stride=steps[scale])
            )
            self.decoder.append(self._stage(scale, 2 * after, kernels[scale], (1, 1, 1)))
        self.heads = nn.ModuleList(Head(c, config.out_channels) for c in config.channels[: config.heads])

    def _stage(self, scale: int, before: int, kernel: Triple, stride: Triple) -> nn.Sequential:
        after = self.config.channels[scale]
        sizes = [before] + [after] * self.config.blocks[scale]
        strides = [stride] + [(1, 1, 1)] * (self.config.blocks[scale] - 1)
        return nn.Sequential(
            *(
                Convolution(self.config, pair, kernel=kernel, stride=step)
                for pair, step in zip(pairwise(sizes), strides, strict=True)
            )
        )

    def _run(self, stage: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(stage, *inputs, use_reentrant=False)
            return result
        return stage(*inputs)

    def _join(self, scale: int, coarse: Tensor, skip: Tensor) -> Tensor:
        up = crop(self.upsampling[scale](coarse), skip.shape[2:])
        joined: Tensor = self.decoder[scale](torch.cat([up, skip], dim=1))
        return joined

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits per scale, finest first.

        Args:
            image: (B, C, Z, Y, X), or (B, C, Y, X) for a network of two dimensions, any sizes.
        """
        flat = self.config.dims == 2
        if flat:
            image = image[:, :, None]
        if self.config.bf16:
            image = image.to(torch.bfloat16)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        skips: list[Tensor] = []
        for stage in self.encoder:
            image = self._run(stage, image)
            skips.append(image)
        heads = len(self.heads) if self.training else 1
        image = skips.pop()
        logits = [self.heads[-1](image)] if heads == self.config.scales else []
        for scale in reversed(range(self.config.scales - 1)):
            skip = skips.pop()
            image = self._run(lambda coarse, skip, s=scale: self._join(s, coarse, skip), image, skip)
            if scale < heads:
                logits.append(self.heads[scale](image))
        return [one[:, :, 0] if flat else one for one in reversed(logits)]
