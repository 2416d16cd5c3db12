"""The peers' 3D U-Nets, each behind the same call: one image channel in, a list of logits out."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 128, 256)


class Listed(nn.Module):
    """Any network as one that returns a list of logits."""

    def __init__(self, inner: nn.Module, *around: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*around[:1], inner, *around[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """The finest logits alone."""
        return [self.inner(image)]


def _monai_unet() -> nn.Module:
    from monai.networks.nets import UNet

    return Listed(UNet(3, 1, 2, CHANNELS, (2, 2, 2, 2), num_res_units=0))


def _monai_dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    return Listed(DynUNet(3, 1, 2, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=list(CHANNELS)))


def _plain_conv_unet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return Listed(
        PlainConvUNet(
            1, 5, CHANNELS, nn.Conv3d, 3, (1, 2, 2, 2, 2), 2, 2, 2, conv_bias=True,
            norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )
    )  # fmt: skip


def _iunets() -> nn.Module:
    from iunets import iUNet

    inner = iUNet(in_channels=CHANNELS[0], architecture=(2, 2, 2, 2, 2), dim=3)
    return Listed(inner, nn.Conv3d(1, CHANNELS[0], 3, padding=1), nn.Conv3d(CHANNELS[0], 2, 1))


PEERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "monai UNet": ("monai", _monai_unet),
    "monai DynUNet": ("monai", _monai_dynunet),
    "nnU-Net PlainConvUNet": ("dynamic_network_architectures", _plain_conv_unet),
    "iunets iUNet": ("iunets", _iunets),
}
"""Name -> package and builder; 1 -> 2 channels, five scales of 16 … 256."""


def build_peers() -> dict[str, nn.Module]:
    """The peers at hand; a line says which are missing or do not load."""
    networks = {}
    for name, (package, build) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not in this environment, left out")
            continue
        torch.manual_seed(0)
        try:
            networks[name] = build()
        except ImportError as error:
            print(f"{name}: does not load here, left out ({error})")
    return networks
