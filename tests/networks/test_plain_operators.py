"""A network in plain operators computes what the network computes."""

import dataclasses

import pytest
import torch

from consilium.errors import ConfigurationError
from consilium.networks.blocks import pad_to_multiple
from consilium.networks.build import NetworkConfig, build_network
from consilium.networks.plain_operators import build_plain_operators, required_multiple
from tests.networks.small import IUNET, UNET, build_shaken, draw_image

ANISOTROPIC = {"resampling": ((1, 2, 2), (2, 2, 2)), "kernels": ()}
CONFIGS = {
    "iunet squeeze": IUNET,
    "iunet plain": dataclasses.replace(IUNET, stem="plain"),
    "iunet anisotropic": dataclasses.replace(
        IUNET, **ANISOTROPIC, stem_stride=(1, 2, 2), channels=(8, 8, 16)
    ),
    "iunet without norm": dataclasses.replace(IUNET, norm="none"),
    "unet3d": UNET,
    "unet3d anisotropic without norm": dataclasses.replace(UNET, norm="none", **ANISOTROPIC),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_network_s_own(name: str) -> None:
    network = build_shaken(CONFIGS[name], torch.float32).eval()
    image = draw_image(1, 1, 9, 14, 11, dtype=torch.float32)
    with torch.no_grad():
        expected = network(image)[0]
        padded = pad_to_multiple(image, required_multiple(network))
        found = build_plain_operators(network)(padded)[:, :, :9, :14, :11]
    # The trunk rounds to its grid, the plain operators do not.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_the_network_itself_is_left_as_it_was() -> None:
    network = build_network(IUNET, seed=0)
    build_plain_operators(network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_network_of_two_dimensions_is_refused() -> None:
    flat = NetworkConfig(kind="iunet", dims=2, channels=(8, 16), out_channels=3)
    with pytest.raises(ConfigurationError, match="three dimensions"):
        build_plain_operators(build_network(flat))
