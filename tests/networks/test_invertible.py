"""The trunk undoes itself, bit for bit on the grid whatever the branch's arithmetic; it stores nothing."""

import dataclasses

import pytest
import torch

from consilium.errors import RunError
from consilium.networks.build import NetworkConfig, build_network
from consilium.networks.iunet import IUNet
from consilium.networks.lifting import GRID, lift_between, lift_rows_
from consilium.networks.resampling import OrthogonalMatrix, compute_haar, downsample, upsample
from tests.networks.small import IUNET, build_shaken, draw_image, measure_logits


def draw_on_grid(*shape: int, seed: int = 5) -> torch.Tensor:
    return (draw_image(*shape, seed=seed) * GRID).round().div(GRID).float()


def draw_matrix(stride: tuple[int, int, int]) -> torch.Tensor:
    module = OrthogonalMatrix(stride).double()
    with torch.no_grad():
        module.weight.normal_(generator=torch.Generator().manual_seed(3))
    return module().detach()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_stream_is_rebuilt_bit_for_bit(bf16: bool, batch: int) -> None:
    network = build_shaken(dataclasses.replace(IUNET, bf16=bf16, blocks=(3, 2, 4)), torch.float32)
    assert isinstance(network, IUNet)
    halves = draw_on_grid(batch, 4, 8, 4, 12), draw_on_grid(batch, 4, 8, 4, 12, seed=6)
    changed = network.trunk.transform(*halves)
    assert (changed[0] - halves[0]).abs().max() > 0.1
    rebuilt = network.trunk.inverse(*changed)
    assert torch.equal(rebuilt[0], halves[0])
    assert torch.equal(rebuilt[1], halves[1])


def test_inverse_off_the_grid_is_exact_to_rounding() -> None:
    network = build_shaken(dataclasses.replace(IUNET, fixed_point=False))
    assert isinstance(network, IUNet)
    halves = draw_image(1, 4, 4, 8, 4), draw_image(1, 4, 4, 8, 4, seed=6)
    rebuilt = network.trunk.inverse(*network.trunk.transform(*halves))
    for one, other in zip(rebuilt, halves, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_resampling_matrix_is_orthogonal_and_starts_at_haar(stride: tuple[int, int, int]) -> None:
    haar = compute_haar(stride)
    torch.testing.assert_close(OrthogonalMatrix(stride).double()(), haar, rtol=0, atol=1e-15)
    torch.testing.assert_close(haar[0], torch.full_like(haar[0], len(haar) ** -0.5))
    matrix = draw_matrix(stride)
    torch.testing.assert_close(
        matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_lifting_is_the_matrix_to_the_grid_and_undone_exactly(stride: tuple[int, int, int]) -> None:
    matrix, fine = draw_matrix(stride), 5 * draw_on_grid(2, 3, 4, 6, 8)
    coarse = downsample(fine, matrix, stride, on_grid=True)
    exact = downsample(fine.double(), matrix, stride, on_grid=False)
    assert (coarse - exact).abs().max() < 2 * len(matrix) / GRID
    assert torch.equal((coarse * GRID).round(), coarse * GRID)
    assert torch.equal(upsample(coarse, matrix, stride, on_grid=True), fine)
    torch.testing.assert_close(
        upsample(exact, matrix, stride, on_grid=False), fine.double(), rtol=0, atol=1e-12
    )


def test_lifting_by_torch_operators_is_undone_exactly_too() -> None:
    matrix, rows = draw_matrix((2, 2, 2)), draw_on_grid(8, 100)
    lifted = rows.clone()
    lift_rows_(lifted, matrix, inverse=False)
    assert (lifted - matrix @ rows.double()).abs().max() < 16 / GRID
    lift_rows_(lifted, matrix, inverse=True)
    assert torch.equal(lifted, rows)


def test_lifting_accepts_strided_channels() -> None:
    matrix, whole = draw_matrix((2, 2, 2)), draw_on_grid(1, 6, 4, 4, 4)
    coarse = torch.empty(1, 16, 2, 2, 2)
    lift_between(whole[:, :2], coarse, matrix, up=False)
    torch.testing.assert_close(coarse, downsample(whole[:, :2].clone(), matrix, (2, 2, 2), on_grid=True))


def test_trunk_gives_features_of_the_scales_asked_for() -> None:
    network = build_shaken(IUNET)
    assert isinstance(network, IUNet)
    halves = draw_image(1, 4, 4, 8, 4), draw_image(1, 4, 4, 8, 4, seed=6)
    first, third = network.trunk(*halves, features=(0, 2))
    assert first.shape == (1, 8, 4, 8, 4)
    assert third.shape == (1, 32, 1, 2, 1)
    torch.testing.assert_close(first, torch.cat(network.trunk.transform(*halves), dim=1))


def test_second_backward_pass_through_one_forward_pass_is_refused() -> None:
    network = build_shaken(IUNET)
    scalar = measure_logits(network, draw_image(1, 1, 5, 6, 7))
    scalar.backward(retain_graph=True)
    with pytest.raises(RunError, match="consumes the stored stream"):
        scalar.backward()


def test_parameter_changed_between_forward_and_backward_pass_is_noticed() -> None:
    network = build_shaken(IUNET)
    scalar = measure_logits(network, draw_image(1, 1, 5, 6, 7))
    with torch.no_grad():
        next(network.trunk.parameters()).add_(1.0)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scalar.backward()


def count_saved_bytes(config: NetworkConfig) -> int:
    """Bytes that autograd keeps between the two passes, by the hook that sees every saved tensor."""
    network = build_network(config, seed=0)
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(torch.zeros(1, 1, 32, 32, 32))
    weights = sum(seen.pop(p.untyped_storage().data_ptr(), 0) for p in network.parameters())
    assert logits
    assert weights > 0
    return sum(seen.values())


def test_saved_bytes_do_not_grow_with_depth() -> None:
    shallow = NetworkConfig(channels=(16, 32), blocks=(1, 1))
    deep = dataclasses.replace(shallow, blocks=(4, 4))
    assert count_saved_bytes(deep) == count_saved_bytes(shallow)
    plain = dataclasses.replace(shallow, reversible=False)
    assert count_saved_bytes(plain) > 3 * count_saved_bytes(shallow)
