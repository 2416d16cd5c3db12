"""One training step, the same for every network: forward pass, Dice + cross-entropy, backward pass."""

from collections.abc import Callable

import torch
from torch import nn

from consilium.losses.multiscale import structure_loss
from consilium.networks.build import NetworkConfig

SQUEEZE = NetworkConfig(kind="iunet", out_channels=2, channels=(32, 64, 128, 256))
PLAIN = NetworkConfig(kind="iunet", out_channels=2, channels=(16, 32, 64, 128, 256), stem="plain")
UNET = NetworkConfig(kind="unet3d", out_channels=2, channels=(16, 32, 64, 128, 256))


def make_step(
    network: nn.Module, shape_zyx: tuple[int, int, int], *, structures: int = 2
) -> Callable[[], None]:
    """A training step on a random image; image and reference are made inside, so that they are counted."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        image = torch.empty(1, 1, *shape_zyx).normal_()
        reference = torch.zeros(1, structures, *shape_zyx, dtype=torch.bool)
        reference[..., : shape_zyx[2] // 4] = True
        logits = network(image)
        structure_loss(logits[0], reference, torch.ones(1, structures, dtype=torch.bool)).backward()

    return step
