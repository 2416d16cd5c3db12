"""Small networks with weights far from their start, for the tests beside this file."""

import dataclasses

import torch
from torch import Tensor, nn

from consilium.networks.build import NetworkConfig, build_network

IUNET = NetworkConfig(kind="iunet", channels=(8, 16, 32), out_channels=2, heads=3, blocks=(2, 1, 2))
UNET = NetworkConfig(kind="unet3d", channels=(4, 6, 8), out_channels=2, heads=3)


def build_shaken(config: NetworkConfig, dtype: torch.dtype = torch.float64, *, seed: int = 1) -> nn.Module:
    """A network whose every parameter, the resampling's too, is away from its initial value."""
    network = build_network(config, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(dtype))
    return network


def twin(config: NetworkConfig) -> NetworkConfig:
    """The same network by plain autograd."""
    return dataclasses.replace(config, reversible=False)


def draw_image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 7) -> Tensor:
    """A seeded normal image."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def measure_logits(network: nn.Module, image: Tensor) -> Tensor:
    """A smooth scalar that depends on every logit."""
    return sum(((one + 0.3).square().mean() for one in network(image)), torch.zeros((), dtype=image.dtype))


def compute_gradients(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The gradient of `measure_logits` by every parameter."""
    network.zero_grad(set_to_none=True)
    measure_logits(network, image).backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient reached {name}"
        gradients[name] = parameter.grad.clone()
    return gradients
