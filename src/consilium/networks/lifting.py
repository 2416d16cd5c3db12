"""An orthogonal matrix as rounded shears, undone bit for bit, in one pass between fine and coarse voxels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilium.networks.compiled import compiled
from consilium.types import Array, FloatArray

GRID = 2.0**16
"""The invertible stream lives on multiples of 1 / GRID, exact in float32 while its size is below 256."""


@dataclass(frozen=True)
class Lifting:
    """Plane rotations, each of three shears, and signs, whose product is an orthogonal matrix.

    ``matrix @ x`` is: flip the rows of ``x`` where ``signs`` is -1, then rotate the pairs of rows
    ``(first[n], second[n])`` in order. ``half_tangent`` and ``sine`` are the shears' factors; angles lie
    within a right angle of zero, so no factor is larger than 1 and rounding is never amplified.
    """

    signs: FloatArray
    first: Array
    second: Array
    half_tangent: FloatArray
    sine: FloatArray


def compute_lifting(matrix: FloatArray) -> Lifting:
    """The lifting of an orthogonal (r, r) matrix, by Givens rotations that make it diagonal."""
    rest = np.array(matrix, dtype=np.float64)
    pairs, angles = [], []
    for column in range(len(rest)):
        for row in range(column + 1, len(rest)):
            head, tail = rest[column, column], rest[row, column]
            if abs(tail) < 1e-12:
                continue
            # A negative head stays negative: half a turn would make the shears unbounded.
            angle = float(np.arctan2(tail, head)) if head >= 0 else float(np.arctan2(-tail, -head))
            cosine, sine = np.cos(angle), np.sin(angle)
            upper, lower = rest[column].copy(), rest[row].copy()
            rest[column], rest[row] = cosine * upper + sine * lower, cosine * lower - sine * upper
            pairs.append((column, row))
            angles.append(angle)
    places = np.array(pairs[::-1], dtype=np.int64).reshape(-1, 2)
    turned = np.array(angles[::-1], dtype=np.float64)
    return Lifting(
        signs=np.sign(np.diag(rest)).astype(np.float32),
        first=places[:, 0].copy(),
        second=places[:, 1].copy(),
        half_tangent=np.tan(turned / 2.0).astype(np.float32),
        sine=np.sin(turned).astype(np.float32),
    )


@compiled
def _shear(target: Array, source: Array, factor: np.float32) -> None:
    scaled, step = np.float32(factor * np.float32(65536.0)), np.float32(1.0 / 65536.0)
    for n in range(target.size):
        target[n] += np.rint(source[n] * scaled) * step


@compiled
def _lift_rows(rows: Array, signs: Array, first: Array, second: Array, tangent: Array, sine: Array) -> None:
    for r in range(signs.size):
        if signs[r] < 0:
            for n in range(rows.shape[1]):
                rows[r, n] = -rows[r, n]
    for s in range(first.size):
        upper, lower = rows[first[s]], rows[second[s]]
        _shear(upper, lower, -tangent[s])
        _shear(lower, upper, sine[s])
        _shear(upper, lower, -tangent[s])


@compiled
def _sink_rows(rows: Array, signs: Array, first: Array, second: Array, tangent: Array, sine: Array) -> None:
    """Undo `_lift_rows`."""
    for s in range(first.size - 1, -1, -1):
        upper, lower = rows[first[s]], rows[second[s]]
        _shear(upper, lower, tangent[s])
        _shear(lower, upper, -sine[s])
        _shear(upper, lower, tangent[s])
    for r in range(signs.size):
        if signs[r] < 0:
            for n in range(rows.shape[1]):
                rows[r, n] = -rows[r, n]


@compiled
def _lift_blocks(fine: Array, coarse: Array, steps: tuple[Array, ...], up: bool) -> None:
    """fine (B, Z, Y, X, k) -> coarse (B, Z/sz, Y/sy, X/sx, r * k), or back where ``up``."""
    signs, first, second, tangent, sine = steps
    batch, size_z, size_y, size_x, _ = coarse.shape
    kept = fine.shape[4]
    sz, sy, sx = fine.shape[1] // size_z, fine.shape[2] // size_y, fine.shape[3] // size_x
    rows = np.empty((sz * sy * sx, size_x * kept), dtype=np.float32)
    for b in range(batch):
        for z in range(size_z):
            for y in range(size_y):
                if up:
                    for r in range(rows.shape[0]):
                        for x in range(size_x):
                            for c in range(kept):
                                rows[r, x * kept + c] = coarse[b, z, y, x, r * kept + c]
                    _sink_rows(rows, signs, first, second, tangent, sine)
                for r in range(rows.shape[0]):
                    dz, dy, dx = r // (sy * sx), (r // sx) % sy, r % sx
                    for x in range(size_x):
                        for c in range(kept):
                            if up:
                                fine[b, z * sz + dz, y * sy + dy, x * sx + dx, c] = rows[r, x * kept + c]
                            else:
                                rows[r, x * kept + c] = fine[b, z * sz + dz, y * sy + dy, x * sx + dx, c]
                if not up:
                    _lift_rows(rows, signs, first, second, tangent, sine)
                    for r in range(rows.shape[0]):
                        for x in range(size_x):
                            for c in range(kept):
                                coarse[b, z, y, x, r * kept + c] = rows[r, x * kept + c]


def _arrays(lifting: Lifting) -> tuple[Array, ...]:
    return lifting.signs, lifting.first, lifting.second, lifting.half_tangent, lifting.sine


def lift_between(fine: Tensor, coarse: Tensor, matrix: Tensor, *, up: bool) -> None:
    """Write ``coarse`` from ``fine`` by the lifted matrix, or with ``up`` exactly undo that.

    Args:
        fine: (B, k, Z, Y, X) float32 on a CPU, on multiples of 1 / GRID, any strides.
        coarse: (B, r * k, Z / sz, Y / sy, X / sx), likewise; channel ``row * k + c``.
        matrix: (r, r) orthogonal.
    """
    fine_array, coarse_array = (i.detach().permute(0, 2, 3, 4, 1).numpy() for i in (fine, coarse))
    lift_arrays(fine_array, coarse_array, matrix.detach().cpu().numpy(), up=up)


def lift_arrays(fine: Array, coarse: Array, matrix: FloatArray, *, up: bool) -> None:
    """`lift_between` on writable float32 arrays whose channels come last, for any framework."""
    _lift_blocks(fine, coarse, _arrays(compute_lifting(matrix)), up)


def lift_rows_(rows: Tensor, matrix: Tensor, *, inverse: bool) -> None:
    """The same on rows (r, N) in place, with torch's own operators, for any device."""
    lifting = compute_lifting(matrix.detach().double().cpu().numpy())
    steps = list(zip(*(part.tolist() for part in _arrays(lifting)[1:]), strict=True))
    flipped = [row for row, sign in enumerate(lifting.signs) if sign < 0]

    def shear(target: int, source: int, factor: float) -> None:
        rows[target].add_((rows[source] * (factor * GRID)).round_(), alpha=1.0 / GRID)

    for row in () if inverse else flipped:
        rows[row].neg_()
    turn = -1.0 if inverse else 1.0
    for i, j, tangent, sine in reversed(steps) if inverse else steps:
        shear(i, j, -turn * tangent)
        shear(j, i, turn * sine)
        shear(i, j, -turn * tangent)
    for row in flipped if inverse else ():
        rows[row].neg_()


def can_lift_between(image: Tensor) -> bool:
    """Whether `lift_between` takes this tensor."""
    return image.device.type == "cpu" and image.dtype == torch.float32
