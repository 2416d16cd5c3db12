"""From a configuration to a network: the only door that the rest of the package needs."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from consilium.errors import ConfigurationError
from consilium.networks.config import NetworkConfig, choose_resampling
from consilium.networks.iunet import IUNet
from consilium.networks.unet3d import UNet3d

__all__ = ["NetworkConfig", "build_network", "choose_resampling", "set_output_prior"]


def build_network(config: NetworkConfig, *, seed: int | None = None) -> nn.Module:
    """The network of a configuration, in training mode.

    ``net(image)`` takes (B, C, Z, Y, X) float32 of any size and returns a list of logits, finest first: the
    finest has the image's spatial size; the coarser ones, in training only, have ``ceil(size / stride)``.

    Args:
        config: What to build.
        seed: Decides the initial weights; None draws them from torch's global generator.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return UNet3d(config) if config.kind == "unet3d" else IUNet(config)


def set_output_prior(network: nn.Module, probabilities: Sequence[float]) -> None:
    """Set every head's bias to the logit of each structure's share of voxels.

    Without it, structures of a few voxels spend a short training at probability zero.

    Args:
        network: From `build_network`.
        probabilities: Per structure the share of voxels inside it; clipped to [1e-6, 1 - 1e-6].

    Raises:
        ConfigurationError: Another number of probabilities than structures, or one outside [0, 1].
    """
    if not isinstance(network, UNet3d | IUNet):
        raise ConfigurationError(
            f"output prior: a network from build_network is needed; got {type(network).__name__}."
        )
    structures = network.config.out_channels
    if len(probabilities) != structures or not all(0.0 <= p <= 1.0 for p in probabilities):
        raise ConfigurationError(
            f"output prior: {structures} probabilities in [0, 1] are needed; got {list(probabilities)}."
        )
    clipped = [min(max(p, 1e-6), 1.0 - 1e-6) for p in probabilities]
    logits = torch.tensor([math.log(p / (1.0 - p)) for p in clipped])
    with torch.no_grad():
        for head in network.heads:
            bias = head.bias
            assert isinstance(bias, torch.Tensor)
            bias.copy_(logits.repeat_interleave(len(bias) // structures))
