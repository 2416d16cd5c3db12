"""The finite-difference test sees the peer's wrong gradient, so it can fail (needs the package iunets)."""

import pytest
import torch

iunets = pytest.importorskip("iunets", reason="the package iunets is not installed (requirements-peers)")


@pytest.mark.filterwarnings("ignore")
def test_resampling_gradient_of_iunets_differs_from_finite_differences() -> None:
    torch.manual_seed(0)
    network = iunets.iUNet(in_channels=8, architecture=(1, 1), dim=3).double()
    image = torch.randn(1, 8, 4, 4, 4, dtype=torch.float64)
    way = torch.randn(1, 8, 4, 4, 4, dtype=torch.float64)
    errors = {}
    for name, parameter in network.named_parameters():
        network.zero_grad()
        (network(image.clone()) * way).sum().backward()
        if parameter.grad is None or parameter.grad.norm() == 0:
            continue
        step = 1e-5 * parameter.grad / parameter.grad.norm()
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step)
                values.append(float((network(image.clone()) * way).sum()))
                parameter.sub_(sign * step)
        computed = float((parameter.grad * step).sum())
        errors[name] = abs((values[0] - values[1]) / 2 - computed) / abs(computed)
    assert errors
    assert max(errors.values()) > 0.1, errors
