"""Gradients of both networks against finite differences; the reversible path against plain autograd."""

import dataclasses

import pytest
import torch
from torch import nn

from consilium.networks.build import NetworkConfig
from tests.networks.small import (
    IUNET,
    UNET,
    build_shaken,
    compute_gradients,
    draw_image,
    measure_logits,
    twin,
)

STEP = 1e-6

CONFIGS = {
    "iunet squeeze": IUNET,
    "iunet plain": dataclasses.replace(IUNET, stem="plain"),
    "iunet anisotropic": dataclasses.replace(
        IUNET, resampling=((1, 2, 2), (2, 2, 2)), stem_stride=(1, 2, 2), channels=(8, 8, 16)
    ),
    "iunet without norm": dataclasses.replace(IUNET, norm="none"),
    "iunet 2D": dataclasses.replace(
        IUNET, dims=2, resampling=(), kernels=(), stem_stride=(), channels=(8, 8, 8)
    ),
    "unet3d": UNET,
    "unet3d checkpointing": dataclasses.replace(UNET, checkpointing=True),
    "unet3d anisotropic without norm": dataclasses.replace(
        UNET, norm="none", resampling=((1, 2, 2), (2, 2, 2)), kernels=()
    ),
}


def sizes_of(config: NetworkConfig) -> tuple[int, ...]:
    return (9, 7) if config.dims == 2 else (5, 9, 7)


def slope_by_finite_differences(network: nn.Module, name: str, image: torch.Tensor) -> tuple[float, float]:
    """Slope of the scalar along a random direction of one parameter: by differences, and by the gradient."""
    parameter = dict(network.named_parameters())[name]
    gradient = compute_gradients(network, image)[name]
    way = torch.randn(
        parameter.shape, generator=torch.Generator().manual_seed(len(name)), dtype=parameter.dtype
    )
    # Along the gradient too: a random direction alone may see almost nothing of it.
    way = way / way.norm() + gradient / gradient.norm()
    values = []
    with torch.no_grad():
        for sign in (2, 1, -1, -2):
            parameter.add_(sign * STEP * way)
            values.append(float(measure_logits(network, image)))
            parameter.sub_(sign * STEP * way)
    measured = (8 * (values[1] - values[2]) - (values[0] - values[3])) / (12 * STEP)
    return measured, float((gradient * way).sum())


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_of_every_parameter_equals_finite_differences(name: str) -> None:
    network = build_shaken(CONFIGS[name])
    image = draw_image(2, 1, *sizes_of(CONFIGS[name]))
    kinds: dict[tuple[str, ...], str] = {}
    for parameter, _ in network.named_parameters():
        # One of each kind and scale is enough: couplings of a scale share their code.
        kinds[(*parameter.split(".")[:3], parameter.split(".")[-1])] = parameter
    for parameter in kinds.values():
        measured, computed = slope_by_finite_differences(network, parameter, image)
        assert computed == pytest.approx(measured, rel=1e-6), parameter


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("iunet")])
def test_reversible_gradient_equals_plain_autograd(name: str) -> None:
    image = draw_image(2, 1, *sizes_of(CONFIGS[name]))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        lean = compute_gradients(build_shaken(CONFIGS[name], dtype), image.to(dtype))
        plain = compute_gradients(build_shaken(twin(CONFIGS[name]), dtype), image.to(dtype))
        errors = [((lean[k] - plain[k]).norm() / plain[k].norm()).item() for k in plain]
        assert sorted(errors)[len(errors) // 2] <= bound
        assert max(errors) <= 100 * bound


@pytest.mark.parametrize("config", [IUNET, twin(IUNET)], ids=["reversible", "plain"])
def test_gradient_by_the_image_equals_finite_differences(config: NetworkConfig) -> None:
    network = build_shaken(dataclasses.replace(config, heads=1))
    image = draw_image(1, 1, 5, 6, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(measure_logits(network, image), image)
    way = draw_image(1, 1, 5, 6, 7, seed=3)
    with torch.no_grad():
        after = measure_logits(network, image + STEP * way)
        before = measure_logits(network, image - STEP * way)
    assert (gradient * way).sum().item() == pytest.approx(float(after - before) / (2 * STEP), rel=1e-6)


def test_dropout_is_the_same_in_forward_and_backward_pass() -> None:
    config = dataclasses.replace(IUNET, dropout=0.4)
    image = draw_image(2, 1, 6, 5, 7)
    gradients = []
    for one in (config, twin(config)):
        network = build_shaken(one)
        torch.manual_seed(11)
        gradients.append(compute_gradients(network, image))
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-9, atol=1e-12)
    torch.manual_seed(12)
    other = compute_gradients(network, image)
    assert any(not torch.equal(other[name], gradients[1][name]) for name in other)


def test_network_used_twice_in_one_step_adds_both_gradients() -> None:
    network = build_shaken(IUNET)
    images = [draw_image(1, 1, 5, 6, 7, seed=s) for s in (1, 2)]
    apart = [compute_gradients(network, image) for image in images]
    network.zero_grad(set_to_none=True)
    (measure_logits(network, images[0]) + measure_logits(network, images[1])).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, apart[0][name] + apart[1][name], rtol=1e-10, atol=1e-14)


def test_clipping_scales_the_whole_gradient() -> None:
    network = build_shaken(IUNET)
    before = compute_gradients(network, draw_image(1, 1, 5, 6, 7))
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    assert norm.item() == pytest.approx(
        torch.cat([g.flatten() for g in before.values()]).norm().item(), rel=1e-9
    )
    after = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert after.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_torch_func_computes_the_reversible_gradient_by_the_plain_path() -> None:
    image = draw_image(1, 1, 5, 6, 7)
    plain = build_shaken(twin(IUNET))
    parameters = {name: p.detach() for name, p in plain.named_parameters()}

    def scalar(values: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(plain, values, (image,))
        return sum(((one + 0.3).square().mean() for one in logits), torch.zeros((), dtype=image.dtype))

    by_func = torch.func.grad(scalar)(parameters)
    for name, gradient in compute_gradients(build_shaken(IUNET), image).items():
        torch.testing.assert_close(by_func[name], gradient, rtol=1e-9, atol=1e-13)


def test_functional_call_on_the_reversible_network_uses_the_given_parameters_backwards_too() -> None:
    image = draw_image(1, 1, 5, 6, 7)
    network, other = build_shaken(IUNET), build_shaken(IUNET, seed=2)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    logits = torch.func.functional_call(network, given, (image,))
    sum(((one + 0.3).square().mean() for one in logits), torch.zeros(())).backward()
    for name, gradient in compute_gradients(other, image).items():
        torch.testing.assert_close(given[name].grad, gradient, rtol=1e-9, atol=1e-13)
