"""A network that finds things: on a grid four times coarser a score, where exactly, and how large."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from consilium.errors import ConfigurationError
from consilium.networks.blocks import pad_to_multiple, space_to_channels
from consilium.networks.build import build_network
from consilium.networks.config import NetworkConfig
from consilium.networks.unet3d import Convolution

STRIDE = 4
"""Voxels of the image per voxel of the output, along every axis."""

OUTPUTS = 5
"""Score logit, offset (z, y, x) in output voxels, logarithm of the diameter in mm."""

_HALF = (2, 2, 2)

DEFAULT_TRUNK = NetworkConfig(
    kind="unet3d", in_channels=32, out_channels=OUTPUTS, channels=(32, 64, 96), blocks=(1, 1, 1)
)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A detector's shape.

    Args:
        in_channels: Image channels.
        stem_channels: At half resolution.
        trunk: The network at a quarter of the resolution; any kind, the invertible one too. Its inputs and
            outputs must fit: the finest channels in, `OUTPUTS` out.

    Raises:
        ConfigurationError: Numbers below 1, or a trunk that does not fit.
    """

    in_channels: int = 1
    stem_channels: int = 24
    trunk: NetworkConfig = DEFAULT_TRUNK

    def __post_init__(self) -> None:
        if min(self.in_channels, self.stem_channels) < 1:
            raise ConfigurationError(
                f"detector: channels must be at least 1; got {self.in_channels} and {self.stem_channels}."
            )
        if self.trunk.out_channels != OUTPUTS or self.trunk.heads != 1 or self.trunk.dims != 3:
            raise ConfigurationError(
                f"detector: the trunk must have {OUTPUTS} outputs, one head and three dimensions; got "
                f"{self.trunk.out_channels}, {self.trunk.heads} and {self.trunk.dims}."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "in_channels": self.in_channels,
            "stem_channels": self.stem_channels,
            "trunk": self.trunk.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectorConfig":
        """The inverse of `to_dict`.

        Raises:
            ConfigurationError: A field that is unknown or cannot be.
        """
        try:
            return cls(**{**values, "trunk": NetworkConfig.from_dict(values["trunk"])})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"detector: a setting is missing or unknown: {error}.") from error


class Detector(nn.Module):
    """``net(image)`` takes (B, C, Z, Y, X) of any size, returns (B, 5, ceil(Z/4), ceil(Y/4), ceil(X/4)).

    The channels are `OUTPUTS`. Output voxel k covers the image's voxels 4k … 4k + 3.

    Source: Zhou, Wang, Krähenbühl 2019, "Objects as Points", section 3, in three dimensions.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        stem, trunk = config.stem_channels, config.trunk
        joined = 8 * config.in_channels
        self.stem = nn.Sequential(
            Convolution(trunk, (joined, stem), kernel=(3, 3, 3), stride=(1, 1, 1)),
            Convolution(trunk, (stem, trunk.in_channels), kernel=(3, 3, 3), stride=_HALF),
        )
        self.trunk = build_network(trunk)

    def forward(self, image: Tensor) -> Tensor:
        """The output maps, float32."""
        image = space_to_channels(pad_to_multiple(image, (STRIDE,) * 3), _HALF)
        if self.config.trunk.bf16:
            image = image.to(torch.bfloat16)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        maps: Tensor = self.trunk(self.stem(image).float())[0]
        return maps.float()


def build_detector(
    config: DetectorConfig, *, seed: int, prior: float = 1e-3, size_mm: float = 10.0
) -> Detector:
    """A detector with drawn weights, in training mode.

    Args:
        config: Its shape.
        seed: Decides the weights.
        prior: The score that every voxel starts with.
        size_mm: The diameter that every voxel starts with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(config)
    heads: Any = detector.trunk.heads
    bias = heads[0].bias
    start = torch.zeros(OUTPUTS)
    start[0] = torch.logit(torch.tensor(prior))
    start[4] = torch.log(torch.tensor(size_mm))
    with torch.no_grad():
        bias.copy_(start.repeat_interleave(len(bias) // OUTPUTS))
    return detector


def with_bf16(config: DetectorConfig, bf16: bool) -> DetectorConfig:
    """The same detector, convolving in bfloat16 or not."""
    return replace(config, trunk=replace(config.trunk, bf16=bf16))
