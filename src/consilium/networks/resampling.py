"""Learnable orthogonal resampling: voxels <-> channels times a small matrix, undone bit for bit."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.networks.blocks import Triple
from consilium.types import FloatArray

GRID = 2.0**16
"""The invertible stream lives on multiples of 1 / GRID, exact in float32 while its size is below 256."""

_CHUNK = 2**15
"""Voxels lifted at once: eight rows of them stay in the cache."""


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

    haar: Tensor

    def __init__(self, stride: Triple) -> None:
        super().__init__()
        haar = compute_haar(stride)
        self.weight = nn.Parameter(torch.zeros(haar.shape))
        self.register_buffer("haar", haar.to(torch.get_default_dtype()), persistent=False)

    def forward(self) -> Tensor:
        skew = self.weight - self.weight.T
        identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        haar = self.haar.to(skew.dtype) if skew.dtype != torch.float64 else self.exact_haar(skew)
        return haar @ torch.linalg.solve(identity + skew, identity - skew)

    def exact_haar(self, like: Tensor) -> Tensor:
        """Haar with entries rounded in float64, whatever the module's first dtype was."""
        rank = len(self.haar)
        scale = float(rank) ** -0.5
        return torch.sign(self.haar).to(like) * scale


def compute_rotations(matrix: FloatArray) -> tuple[list[tuple[int, int, float]], FloatArray]:
    """Plane rotations and signs whose product is an orthogonal matrix.

    Args:
        matrix: (r, r) orthogonal, float64.

    Returns:
        Steps ``(i, j, angle)`` and signs (r,), so that applying the signs to the rows of ``x`` and then the
        rotations in order equals ``matrix @ x``. Angles are within half a turn of a right angle, where three
        shears do not amplify rounding.
    """
    rest, steps = matrix.copy(), []
    size = len(rest)
    for column in range(size):
        for row in range(column + 1, size):
            head, tail = rest[column, column], rest[row, column]
            if abs(tail) < 1e-12:
                continue
            if head < 0:
                head, tail = -head, -tail
            angle = float(np.arctan2(tail, head))
            cosine, sine = np.cos(angle), np.sin(angle)
            upper, lower = rest[column].copy(), rest[row].copy()
            rest[column], rest[row] = cosine * upper + sine * lower, cosine * lower - sine * upper
            steps.append((column, row, angle))
    return steps[::-1], np.sign(np.diag(rest))


def _shear(rows: Tensor, target: int, source: int, factor: float) -> None:
    moved = rows[source] * (factor * GRID)
    rows[target].add_(moved.round_(), alpha=1.0 / GRID)


def _rotate(rows: Tensor, i: int, j: int, angle: float) -> None:
    """Rotate rows i and j by three rounded shears; the negative angle undoes it bit for bit."""
    half, sine = np.tan(angle / 2.0), np.sin(angle)
    _shear(rows, i, j, -half)
    _shear(rows, j, i, sine)
    _shear(rows, i, j, -half)


def lift_(rows: Tensor, matrix: Tensor, *, inverse: bool = False) -> None:
    """``rows = matrix @ rows`` in place on the grid, within r / GRID of the exact product; exactly invertible.

    Args:
        rows: (r, N) float32 on multiples of 1 / GRID, contiguous.
        matrix: (r, r) orthogonal.
        inverse: Undo it instead.
    """
    steps, signs = compute_rotations(matrix.detach().double().cpu().numpy())
    flipped = [row for row, sign in enumerate(signs) if sign < 0]
    for start in range(0, rows.shape[1], _CHUNK):
        chunk = rows[:, start : start + _CHUNK]
        if not inverse:
            for row in flipped:
                chunk[row].neg_()
            for i, j, angle in steps:
                _rotate(chunk, i, j, angle)
        else:
            for i, j, angle in reversed(steps):
                _rotate(chunk, i, j, -angle)
            for row in flipped:
                chunk[row].neg_()


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


def mix(rows: Tensor, matrix: Tensor, *, inverse: bool, on_grid: bool) -> Tensor:
    """``matrix @ rows`` (or its inverse), lifted where the stream lives on the grid; may reuse ``rows``."""
    if on_grid and rows.dtype == torch.float32:
        lift_(rows, matrix, inverse=inverse)
        return rows
    return (matrix.T if inverse else matrix) @ rows


def fine_shape_of(coarse: Tensor, stride: Triple) -> torch.Size:
    """Shape of the fine image that a coarse one (B, r * k, Z', Y', X') came from."""
    batch, channels, *sizes = coarse.shape
    rank = stride[0] * stride[1] * stride[2]
    fine = [size * step for size, step in zip(sizes, stride, strict=True)]
    return torch.Size([batch, channels // rank, *fine])


def downsample(fine: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """(B, k, Z, Y, X) -> (B, r * k, Z / sz, Y / sy, X / sx), a new tensor, orthogonal."""
    rows = mix(gather_rows(fine, stride).contiguous(), matrix, inverse=False, on_grid=on_grid)
    return rows_to_coarse(rows, fine.shape, stride)


def upsample(coarse: Tensor, matrix: Tensor, stride: Triple, *, on_grid: bool) -> Tensor:
    """The exact inverse of `downsample`."""
    rows = mix(coarse_to_rows(coarse, len(matrix)), matrix, inverse=True, on_grid=on_grid)
    return scatter_rows(rows, fine_shape_of(coarse, stride), stride)


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
