"""Learnable orthogonal resampling: voxels <-> channels times a small matrix, undone bit for bit."""

from typing import Any

import torch
from torch import Tensor, nn

from consilium.networks.blocks import Triple
from consilium.networks.lifting import can_lift_between, lift_between, lift_rows_


def compute_haar(stride: Triple) -> Tensor:
    """The orthonormal Haar matrix (r, r) of a block of ``stride`` voxels; row 0 is the scaled mean."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    for step in stride:
        matrix = torch.kron(matrix, pair if step == 2 else torch.ones(1, 1, dtype=torch.float64))
    return matrix


class OrthogonalMatrix(nn.Module):
    """A learnable (r, r) orthogonal matrix: Haar times the Cayley transform of a skew matrix, Haar at first.

    ``forward()`` returns ``H (I + S)^-1 (I - S)`` with ``S = A - A^T``.

    Source: Etmann, Ke, Schönlieb 2020, "iUNets: Fully invertible U-Nets with learnable up- and downsampling",
    section 3.2. The gradient is that of a linear solve, exact; finite differences check it.
    """

    signs: Tensor

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        signs = torch.sign(compute_haar(stride))
        self.weight = nn.Parameter(torch.zeros(signs.shape))
        # Signs, not the matrix: they are exact in whatever dtype the module is moved to.
        self.register_buffer("signs", signs.to(torch.get_default_dtype()), persistent=False)

    def forward(self) -> Tensor:
        skew = self.weight - self.weight.T
        identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        haar = self.signs * len(skew) ** -0.5
        rotation: Tensor = torch.linalg.solve(identity + skew, identity - skew)
        matrix: Tensor = haar @ rotation
        return matrix


def gather_rows(image: Tensor, stride: Triple) -> Tensor:
    """(B, k, Z, Y, X) -> (r, B * Z/sz * Y/sy * X/sx * k): one row per place in the block, channels last."""
    batch, channels, size_z, size_y, size_x = image.shape
    sz, sy, sx = stride
    last = image.permute(0, 2, 3, 4, 1)
    split = last.reshape(batch, size_z // sz, sz, size_y // sy, sy, size_x // sx, sx, channels)
    return split.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(sz * sy * sx, -1)


def scatter_rows(rows: Tensor, shape: torch.Size, stride: Triple) -> Tensor:
    """The inverse of `gather_rows`, to an image of ``shape`` in channels-last layout."""
    batch, channels, size_z, size_y, size_x = shape
    sz, sy, sx = stride
    split = rows.view(sz, sy, sx, batch, size_z // sz, size_y // sy, size_x // sx, channels)
    last = split.permute(3, 4, 0, 5, 1, 6, 2, 7).reshape(batch, size_z, size_y, size_x, channels)
    return last.permute(0, 4, 1, 2, 3)


def rows_to_coarse(rows: Tensor, fine_shape: torch.Size, stride: Triple) -> Tensor:
    """(r, B * Z' * Y' * X' * k) -> (B, r * k, Z', Y', X') in channels-last layout, channel row * k + c."""
    batch, channels, size_z, size_y, size_x = fine_shape
    sz, sy, sx = stride
    coarse = (batch, size_z // sz, size_y // sy, size_x // sx)
    split = rows.view(len(rows), *coarse, channels)
    return split.permute(1, 2, 3, 4, 0, 5).reshape(*coarse, len(rows) * channels).permute(0, 4, 1, 2, 3)


def coarse_to_rows(image: Tensor, rank: int) -> Tensor:
    """The inverse of `rows_to_coarse`."""
    last = image.permute(0, 2, 3, 4, 1)
    split = last.reshape(*last.shape[:4], rank, last.shape[4] // rank)
    return split.permute(4, 0, 1, 2, 3, 5).reshape(rank, -1)


def fine_shape_of(coarse: Tensor, stride: Triple) -> torch.Size:
    """Shape of the fine image that a coarse one (B, r * k, Z', Y', X') came from."""
    batch, channels, *sizes = coarse.shape
    rank = stride[0] * stride[1] * stride[2]
    fine = [size * step for size, step in zip(sizes, stride, strict=True)]
    return torch.Size([batch, channels // rank, *fine])


def downsample(fine: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """(B, k, Z, Y, X) -> (B, r * k, Z / sz, Y / sy, X / sx), a new tensor, orthogonal.

    On the grid the product with the matrix is lifted, within r / GRID of the exact one, so that `upsample`
    undoes it bit for bit.
    """
    if on_grid and can_lift_between(fine):
        coarse = _empty(coarse_shape_of(fine, stride), fine)
        lift_between(fine, coarse, matrix, up=False)
        return coarse
    rows = gather_rows(fine, stride).contiguous()
    if on_grid:
        lift_rows_(rows, matrix, inverse=False)
    else:
        rows = matrix @ rows
    return rows_to_coarse(rows, fine.shape, stride)


def upsample(coarse: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """The exact inverse of `downsample`."""
    fine = _empty(fine_shape_of(coarse, stride), coarse)
    upsample_into(fine, coarse, matrix, stride, on_grid=on_grid)
    return fine


def upsample_into(fine: Tensor, coarse: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> None:
    """`upsample` written into ``fine``, any strides."""
    if on_grid and can_lift_between(coarse):
        lift_between(fine, coarse, matrix, up=True)
        return
    rows = coarse_to_rows(coarse, len(matrix)).contiguous()
    if on_grid:
        lift_rows_(rows, matrix, inverse=True)
    else:
        rows = matrix.T @ rows
    fine.copy_(scatter_rows(rows, fine.shape, stride))


def _empty(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def coarse_shape_of(fine: Tensor, stride: Triple) -> torch.Size:
    """Shape (B, r * k, Z / sz, Y / sy, X / sx) behind `downsample`."""
    batch, channels, *sizes = fine.shape
    rank = stride[0] * stride[1] * stride[2]
    return torch.Size([batch, channels * rank, *(n // step for n, step in zip(sizes, stride, strict=True))])


def downsample_backward(grad: Tensor, fine: Tensor, matrix: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Gradients of `downsample` by the image and the matrix; rounding counts as the identity."""
    rows = coarse_to_rows(grad, len(matrix))
    grad_matrix = rows @ gather_rows(fine, stride).T
    return scatter_rows(matrix.T @ rows, fine.shape, stride), grad_matrix


def upsample_backward(grad: Tensor, coarse: Tensor, matrix: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Gradients of `upsample` by the coarse image and the matrix; rounding counts as the identity."""
    rows = gather_rows(grad, stride)
    grad_matrix = coarse_to_rows(coarse, len(matrix)) @ rows.T
    return rows_to_coarse(matrix @ rows, grad.shape, stride), grad_matrix


class Resample(torch.autograd.Function):
    """`downsample` or `upsample` as one differentiable step, for the plain path."""

    @staticmethod
    def forward(image: Tensor, matrix: Tensor, stride: Triple, up: bool, on_grid: bool) -> Tensor:
        return (upsample if up else downsample)(image, matrix, stride, on_grid=on_grid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, matrix, ctx.stride, ctx.up, _ = inputs
        ctx.save_for_backward(image, matrix)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        image, matrix = ctx.saved_tensors
        gradients = upsample_backward if ctx.up else downsample_backward
        grad_image, grad_matrix = gradients(grad, image, matrix, ctx.stride)
        return grad_image, grad_matrix, None, None, None
