"""A small untrained model for tests."""

import torch

from consilium.inference.model import Model, ModelDescription, build_model
from consilium.inference.preprocess import Preprocessing
from consilium.networks.build import NetworkConfig, build_network
from consilium.types import Shape


def small_model(*, seed: int = 0, window_zyx: Shape | None = None, norm: str = "instance") -> Model:
    """Two structures, two channels, two scales."""
    config = NetworkConfig(
        kind="unet3d", in_channels=2, out_channels=2, channels=(8, 16), resampling=((1, 2, 2),), norm=norm
    )
    network = build_network(config, seed=seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith("heads."):
                weight.mul_(30.0)
    description = ModelDescription(
        structures=("Bladder", "Rectum"),
        preprocessing=Preprocessing(spacing_zyx_mm=(3.0, 2.0, 2.0)),
        network=config,
        window_zyx=window_zyx,
    )
    return build_model(description, network.state_dict(), device=torch.device("cpu"))
