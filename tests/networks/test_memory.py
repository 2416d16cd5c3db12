"""The memory plan against the allocator, and its arithmetic against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.live_tensors import peak_live_bytes
from benchmarks.training_step import make_step
from consilium.networks.build import NetworkConfig, build_network
from consilium.networks.memory import count_parameters, predict_flops, predict_peak_bytes

IUNET = NetworkConfig(out_channels=2, channels=(16, 32, 64))
UNET = NetworkConfig(kind="unet3d", out_channels=2, channels=(8, 16, 32))
CONFIGS = {
    "iunet": IUNET,
    "iunet deep": replace(IUNET, blocks=(4, 4, 4)),
    "iunet plain": replace(IUNET, stem="plain"),
    "iunet anisotropic": NetworkConfig(
        out_channels=2, channels=(16, 32, 64), resampling=((1, 2, 2), (2, 2, 2)), stem_stride=(1, 2, 2)
    ),
    "iunet not reversible": replace(IUNET, reversible=False),
    "unet3d": UNET,
    "unet3d checkpointing": replace(UNET, checkpointing=True),
    "unet3d deep": replace(UNET, blocks=(3, 3, 3)),
}


@pytest.mark.parametrize("shape", [(24, 32, 40), pytest.param((104, 104, 16), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONFIGS)
def test_predicted_peak_is_within_15_percent_of_the_allocator(name: str, shape: tuple[int, int, int]) -> None:
    measured = peak_live_bytes(make_step(build_network(CONFIGS[name], seed=0), shape))
    assert predict_peak_bytes(CONFIGS[name], shape, training=True) == pytest.approx(measured, rel=0.15)


def test_doubled_depth_changes_the_peak_by_less_than_two_percent() -> None:
    peaks = []
    for blocks in ((2, 2), (4, 4)):
        network = build_network(NetworkConfig(channels=(16, 16), blocks=blocks, out_channels=2), seed=0)
        weights = 4 * sum(p.numel() for p in network.parameters())
        peaks.append(peak_live_bytes(make_step(network, (48, 48, 48))) - weights)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02)


@pytest.mark.parametrize("name", ["iunet", "iunet plain", "iunet anisotropic", "unet3d"])
def test_counted_arithmetic_equals_torch_s_counter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter knows torch's own convolution only.
    monkeypatch.setattr("consilium.networks.convolution.is_slow", lambda *_: False)
    network = build_network(replace(CONFIGS[name], reversible=False), seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 32, 32, 32))
    predicted = predict_flops(CONFIGS[name], (32, 32, 32), training=False)
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_parameters_are_counted_without_building() -> None:
    assert count_parameters(IUNET) == sum(p.numel() for p in build_network(IUNET).parameters())
