"""A network for inference in operators that every runtime knows: convolutions, norms, concatenation."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.errors import ConfigurationError
from consilium.networks.blocks import EPSILON, SLOPE, Triple, as_three
from consilium.networks.branch import Parameters
from consilium.networks.iunet import IUNet
from consilium.networks.reversible import Couplings, Halves
from consilium.networks.trunk import LinearHead
from consilium.networks.unet3d import Convolution, Head, UNet3d, Upsampling


def build_plain_operators(network: nn.Module) -> nn.Module:
    """The network as one that can be exported: ``net(image)`` returns the finest logits alone, in float32.

    Rounding to the grid is left out (it serves the backward pass alone), and resampling by a matrix is a
    strided convolution. The image's sizes must be multiples of `required_multiple`.

    Args:
        network: From `consilium.networks.build.build_network`, of three dimensions.

    Raises:
        ConfigurationError: A network of two dimensions, or none of ours.
    """
    if isinstance(network, IUNet | UNet3d) and network.config.dims == 3:
        network = copy.deepcopy(network).cpu().eval()
        plain = _PlainIUNet(network) if isinstance(network, IUNet) else _PlainUNet(network)
        return plain.eval().requires_grad_(False)
    raise ConfigurationError("export: needs a network from build_network with three dimensions; got another.")


def required_multiple(network: nn.Module) -> Triple:
    """What the sizes (Z, Y, X) of an image must be multiples of; `pad_to_multiple` makes them so."""
    if isinstance(network, IUNet):
        return as_three(network.config.total_stride)
    return 1, 1, 1


def example_sizes(network: nn.Module) -> Triple:
    """Small sizes (Z, Y, X) that every scale of the network takes, to export it with."""
    assert isinstance(network, IUNet | UNet3d)
    first, second, third = as_three(network.config.total_stride)
    return 2 * first, 2 * second, 2 * third


def _normed(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(image, weight=weight, bias=bias, eps=EPSILON)


def _same(weight: Tensor) -> list[int]:
    return [k // 2 for k in weight.shape[2:]]


def squeezing_weight(weight: Tensor, stride: Triple) -> Tensor:
    """The weight of a strided convolution that equals one behind voxels-to-channels.

    Args:
        weight: (O, C * r, kz, ky, kx), of the convolution behind `space_to_channels`.
        stride: Voxels that become channels; the new convolution's step.

    Returns:
        (O, C, kz * sz, ky * sy, kx * sx); its padding is the old one times the stride.
    """
    outputs, joined, *kernel = weight.shape
    split = weight.reshape(outputs, joined // math.prod(stride), *stride, *kernel)
    moved = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return moved.reshape(outputs, -1, *(k * s for k, s in zip(kernel, stride, strict=True)))


class _PlainIUNet(nn.Module):
    """The trunk's walk with everything folded into convolutions."""

    def __init__(self, network: IUNet) -> None:
        super().__init__()
        trunk, stem, head = network.trunk, network.stem, network.heads[0]
        assert isinstance(head, LinearHead)
        # The plan's places index this list; the matrices in it were computed once.
        self.plan, tensors = trunk.plan(torch.float64)
        self.tensors = nn.ParameterList(t.detach().float() for t in tensors)
        self.stem_stride = stem.stride
        self.stem_weight = nn.Parameter(squeezing_weight(stem.weight.detach().float(), stem.stride))
        self.stem_bias = nn.Parameter(stem.bias.detach().float())
        outputs = network.config.out_channels
        folded = head.weight.detach().float().view(outputs, *stem.stride, -1)
        self.head_weight = nn.Parameter(folded.permute(4, 0, 1, 2, 3).contiguous())
        self.head_bias = nn.Parameter(head.bias.detach().float().view(outputs, -1))
        self.matrices = nn.ParameterList(
            _matrix_weight(self.tensors[place], kept, stride)
            for place, kept, stride in zip(self.plan.matrices, self.plan.kept, self.plan.strides, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> logits (B, S, Z, Y, X)."""
        pads = [
            p * s for p, s in zip(_half(self.stem_weight, self.stem_stride), self.stem_stride, strict=True)
        ]
        stream = functional.conv3d(
            image, self.stem_weight, self.stem_bias, stride=self.stem_stride, padding=pads
        )
        halves = self._walk(_split(stream))
        logits = functional.conv_transpose3d(
            torch.cat(halves, dim=1), self.head_weight, stride=self.stem_stride
        )
        return logits + self._head_shift(logits)

    def _head_shift(self, logits: Tensor) -> Tensor:
        """The bias; behind a squeeze stem each place of the block has its own."""
        outputs, places = self.head_bias.shape
        if places == 1:
            return self.head_bias.view(1, outputs, 1, 1, 1)
        block = self.head_bias.view(1, outputs, *self.stem_stride)
        repeats = [size // step for size, step in zip(logits.shape[2:], self.stem_stride, strict=True)]
        return block.repeat(1, 1, *repeats)

    def _walk(self, halves: Halves) -> Halves:
        plan, skips = self.plan, list[Halves]()
        last = plan.scales - 1
        for scale in range(last):
            halves = self._couple(halves, plan.encoder[scale])
            skips.append(halves)
            kept, stride = plan.kept[scale], plan.strides[scale]
            first, second = (
                functional.conv3d(half[:, :kept], self.matrices[scale], stride=stride) for half in halves
            )
            halves = first, second
        halves = self._couple(halves, plan.encoder[last])
        for scale in reversed(range(last)):
            kept, stride = plan.kept[scale], plan.strides[scale]
            first, second = (
                torch.cat(
                    [functional.conv_transpose3d(half, self.matrices[scale], stride=stride), skip[:, kept:]],
                    1,
                )
                for half, skip in zip(halves, skips.pop(), strict=True)
            )
            halves = self._couple((first, second), plan.decoder[scale])
        return halves

    def _couple(self, halves: Halves, couplings: Couplings) -> Halves:
        first, second = halves
        for plan, place in couplings:
            parameters = tuple(self.tensors[n] for n in range(place.start, place.stop))
            first, second = second, first + _branch(second, parameters, normed=plan.normed)
        return first, second


def _half(weight: Tensor, stride: Triple) -> list[int]:
    """Padding of a squeezed convolution, in steps."""
    return [k // s // 2 for k, s in zip(weight.shape[2:], stride, strict=True)]


def _split(stream: Tensor) -> Halves:
    middle = stream.shape[1] // 2
    return stream[:, :middle], stream[:, middle:]


def _matrix_weight(matrix: Tensor, kept: int, stride: Triple) -> Tensor:
    """The resampling matrix (r, r) as the weight (r * kept, kept, sz, sy, sx) of a strided convolution."""
    spread = torch.einsum("rp,cd->rcdp", matrix, torch.eye(kept, dtype=matrix.dtype))
    return spread.reshape(-1, kept, *stride).contiguous()


def _branch(image: Tensor, parameters: Parameters, *, normed: bool) -> Tensor:
    weight, second, second_bias = parameters[0], parameters[-2], parameters[-1]
    if normed:
        hidden = functional.conv3d(image, weight, padding=_same(weight))
        hidden = _normed(hidden, parameters[1], parameters[2])
    else:
        hidden = functional.conv3d(image, weight, parameters[1], padding=_same(weight))
    hidden = functional.leaky_relu(hidden, SLOPE)
    return functional.conv3d(hidden, second, second_bias, padding=_same(second))


class _PlainUNet(nn.Module):
    """The 3D U-Net with transposed convolutions for its upsampling."""

    def __init__(self, network: UNet3d) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> logits (B, S, Z, Y, X)."""
        skips = []
        for stage in self.network.encoder:
            image = _run_stage(stage, image)
            skips.append(image)
        image = skips.pop()
        for scale in reversed(range(len(skips))):
            skip, up = skips.pop(), self.network.upsampling[scale]
            assert isinstance(up, Upsampling)
            risen = functional.conv_transpose3d(
                image, up.weight.float().transpose(0, 1), up.bias.float(), stride=up.stride
            )
            sizes = skip.shape[2:]
            risen = risen[:, :, : sizes[0], : sizes[1], : sizes[2]]
            image = _run_stage(self.network.decoder[scale], torch.cat([risen, skip], dim=1))
        head = self.network.heads[0]
        assert isinstance(head, Head)
        return functional.conv3d(image, head.weight.float(), head.bias.float())


def _run_stage(stage: nn.Module, image: Tensor) -> Tensor:
    for one in stage.children():
        assert isinstance(one, Convolution)
        weight, bias = one.weight.float(), one.bias.float()
        if one.norm_weight is None:
            image = functional.conv3d(image, weight, bias, stride=one.stride, padding=_same(weight))
        else:
            image = functional.conv3d(image, weight, stride=one.stride, padding=_same(weight))
            image = _normed(image, one.norm_weight.float(), bias)
        image = functional.leaky_relu(image, SLOPE)
    return image
