"""The invertible U-Net: a stem, the invertible trunk, and a head per scale."""

import math

import torch
from torch import Tensor, nn

from consilium.networks.blocks import (
    Triple,
    as_three,
    channels_to_space,
    pad_to_multiple,
    space_to_channels,
)
from consilium.networks.config import NetworkConfig
from consilium.networks.convolution import convolve
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

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = space_to_channels(image, self.stride).contiguous(memory_format=torch.channels_last_3d)
        middle = len(self.bias) // 2
        # Two convolutions instead of one: the halves are born apart and are never copied.
        return (
            convolve(image, self.weight[:middle], self.bias[:middle]),
            convolve(image, self.weight[middle:], self.bias[middle:]),
        )


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
                logits.append(output[:, :, : sizes[0], : sizes[1], : sizes[2]])
                continue
            stride = _times(stride, self.trunk.strides[scale - 1])
            coarse = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
            logits.append(output[:, :, : coarse[0], : coarse[1], : coarse[2]])
        return [one[:, :, 0] if flat else one for one in logits]

    def _head(self, scale: int) -> LinearHead:
        head = self.heads[scale]
        assert isinstance(head, LinearHead)
        return head


def _times(stride: Triple, step: Triple) -> Triple:
    return stride[0] * step[0], stride[1] * step[1], stride[2] * step[2]
