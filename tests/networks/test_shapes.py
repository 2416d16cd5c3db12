"""Any size in, the same size out; configurations that cannot be; the prior; the slow convolution."""

import dataclasses
import json
import time

import pytest
import torch
from torch.nn import functional

from consilium.errors import ConfigurationError
from consilium.networks.build import NetworkConfig, build_network, choose_resampling, set_output_prior
from consilium.networks.convolution import convolve, is_slow
from tests.networks.small import IUNET, UNET, draw_image

ALL = {
    "unet3d": UNET,
    "unet3d bf16": dataclasses.replace(UNET, bf16=True),
    "iunet squeeze": IUNET,
    "iunet squeeze bf16": dataclasses.replace(IUNET, bf16=True),
    "iunet plain": dataclasses.replace(IUNET, stem="plain"),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 17, 9), (16, 16, 16), (3, 2, 31)])
def test_finest_logits_have_the_size_of_any_image(name: str, sizes: tuple[int, ...]) -> None:
    network = build_network(ALL[name], seed=0)
    logits = network(torch.zeros(2, 1, *sizes))
    assert logits[0].shape == (2, 2, *sizes)
    assert [one.dtype for one in logits] == [torch.float32] * 3
    config = ALL[name]
    stride = 2 if config.kind == "iunet" and config.stem == "squeeze" else 1
    for coarse in logits[1:]:
        stride *= 2
        assert coarse.shape[2:] == tuple(-(-size // stride) for size in sizes)
    assert all(torch.isfinite(one).all() for one in logits)


@pytest.mark.parametrize("name", ["unet3d", "iunet squeeze", "iunet plain"])
def test_evaluation_gives_the_finest_logits_only(name: str) -> None:
    network = build_network(ALL[name], seed=0)
    image = draw_image(1, 1, 7, 9, 8, dtype=torch.float32)
    with torch.no_grad():
        finest = network(image)[0]
        (alone,) = network.eval()(image)
    assert torch.equal(alone, finest)


def test_sizes_of_scales_follow_anisotropic_strides() -> None:
    config = dataclasses.replace(UNET, resampling=((1, 2, 2), (2, 2, 2)), kernels=())
    assert config.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    shapes = [tuple(one.shape[2:]) for one in build_network(config)(torch.zeros(1, 1, 5, 9, 8))]
    assert shapes == [(5, 9, 8), (5, 5, 4), (3, 3, 2)]


def test_two_dimensional_networks_take_slices() -> None:
    for config in (
        NetworkConfig(kind="iunet", dims=2, channels=(8, 16), out_channels=3),
        NetworkConfig(kind="unet3d", dims=2, channels=(8, 16), out_channels=3),
    ):
        assert build_network(config)(torch.zeros(2, 1, 17, 12))[0].shape == (2, 3, 17, 12)


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    first, second = build_network(IUNET, seed=9), build_network(IUNET, seed=9)
    assert torch.equal(torch.rand(1), expected)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
def test_configuration_survives_json(config: NetworkConfig) -> None:
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vnet"}, "kind must be one of"),
        ({"channels": (8, 12, 32)}, "multiple of 16"),
        ({"channels": (8, 128, 256)}, "at most 64"),
        ({"heads": 4}, "at most the 3 scales"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"resampling": ((2, 2, 3), (2, 2, 2))}, "1 or 2"),
        ({"kernels": ((2, 3, 3),) * 3}, "odd"),
        ({"blocks": (1, 1)}, "3 entries"),
        ({"out_channels": 0}, "at least 1"),
    ],
)
def test_configuration_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NetworkConfig.from_dict({**IUNET.to_dict(), **change})


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="depth"):
        NetworkConfig.from_dict({"depth": 5})


def test_resampling_spares_the_axis_of_thick_slices_until_voxels_are_cubes() -> None:
    assert choose_resampling((5.0, 1.0, 1.0), 4) == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert choose_resampling((3.0, 1.0, 1.0), 3, first_is_stem=True) == ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert choose_resampling((1.0, 1.0, 1.0), 2) == ((2, 2, 2),)


@pytest.mark.parametrize("name", ALL)
def test_output_prior_decides_the_probability_of_an_empty_image(name: str) -> None:
    network = build_network(ALL[name], seed=0)
    set_output_prior(network, [0.25, 0.001])
    for head in network.heads:  # type: ignore[union-attr]
        torch.nn.init.zeros_(head.weight)
    for logits in network(torch.zeros(1, 1, 6, 7, 8)):
        mean = torch.sigmoid(logits).mean(dim=(0, 2, 3, 4))
        torch.testing.assert_close(mean, torch.tensor([0.25, 0.001]), rtol=5e-3, atol=0)


def test_output_prior_refuses_another_number_of_structures() -> None:
    with pytest.raises(ConfigurationError, match="2 probabilities"):
        set_output_prior(build_network(IUNET), [0.5])


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_small_convolution_by_onednn_equals_torch_in_float64(stride: tuple[int, int, int]) -> None:
    image = draw_image(1, 8, 5, 6, 7, dtype=torch.float32).requires_grad_()
    weight = draw_image(4, 8, 3, 3, 3, dtype=torch.float32).requires_grad_()
    bias = draw_image(4, dtype=torch.float32).requires_grad_()
    assert is_slow(image, weight)
    wide = [t.detach().double().requires_grad_() for t in (image, weight, bias)]
    ours = convolve(image, weight, bias, stride=stride)
    exact = functional.conv3d(wide[0], wide[1], wide[2], stride=stride, padding=1)
    torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4)
    ours.square().sum().backward()
    exact.square().sum().backward()
    for one, other in zip((image, weight, bias), wide, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-3, atol=1e-2)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_small_convolution_is_faster_than_torch_s_own_choice() -> None:
    image, weight = torch.randn(1, 32, 24, 24, 24), torch.randn(32, 32, 3, 3, 3)

    def seconds(work: object) -> float:
        times = []
        for _ in range(4):
            before = time.process_time()
            work()  # type: ignore[operator]
            times.append(time.process_time() - before)
        return min(times)

    ours = seconds(lambda: convolve(image, weight))
    theirs = seconds(lambda: functional.conv3d(image, weight, padding=1))
    assert ours < 0.7 * theirs
