"""The weight gradient of a float32 convolution on processors without AVX512.

oneDNN has no kernel of its own there: it unfolds the image into rows of 27 copies and multiplies matrices, at
a quarter of the processor's rate with 16 channels. This one keeps a block of the gradient in registers and
reads image and gradient in place.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from consilium.networks.blocks import Triple
from consilium.networks.compiled import compiled
from consilium.types import Array

LANES = 8
"""Output channels in one vector."""

BLOCK_BYTES = 65536
"""Rows of image and gradient that are read again for every place of the kernel: they stay in the cache."""

_WORTH_A_THREAD = 1e7
"""Operations below which threads cost more than they bring."""


def is_processor_suited() -> bool:
    """Whether this kernel is faster than oneDNN here."""
    return bool(torch.backends.cpu.get_cpu_capability() == "AVX2")


def can_accumulate(image: Tensor, weight: Tensor) -> bool:
    """Whether this kernel computes the gradient by ``weight`` for this image, and is faster."""
    return (
        image.device.type == "cpu"
        and image.dtype == weight.dtype == torch.float32
        and weight.shape[0] % LANES == 0
        and is_processor_suited()
    )


def compute_weight_gradient(grad: Tensor, image: Tensor, weight: Tensor, stride: Triple) -> Tensor:
    """Gradient (O, C, kz, ky, kx) of a convolution with zero padding of half a kernel.

    The result is the same, bit for bit, for any number of threads: each computes elements of its own.

    Args:
        grad: Gradient by the result, (B, O, Z', Y', X') float32; O is a multiple of `LANES`.
        image: (B, C, Z, Y, X) float32.
        weight: Its shape counts.
        stride: Step along (z, y, x).
    """
    after, before, *kernel = weight.shape
    total = torch.zeros(*kernel, before, after)
    source, flow = (
        one.detach().contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1).numpy()
        for one in (image, grad)
    )
    row_bytes = 4 * (image.shape[4] * before + grad.shape[4] * after)
    rows = max(1, BLOCK_BYTES // row_bytes)
    blocks = -(-before // 4)
    jobs = kernel[0] * kernel[1] * kernel[2] * blocks
    worth = 2.0 * weight.numel() * grad.numel() / after > _WORTH_A_THREAD
    threads = min(torch.get_num_threads(), jobs) if worth else 1
    bounds = [jobs * part // threads for part in range(threads + 1)]

    def work(part: int) -> None:
        _accumulate(source, flow, total.numpy(), stride, rows, (bounds[part], bounds[part + 1]))

    if threads == 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    return total.permute(4, 3, 0, 1, 2).contiguous()


@intrinsic  # type: ignore[untyped-decorator]
def _outer(typing: Any, places: Any, counts: Any, steps: Any, channels: Any, vectors: Any) -> Any:
    """Add to (channels, vectors * LANES) sums the products over ``counts`` (rows, voxels).

    ``places`` are the addresses of image, gradient and sums; ``steps`` are, in floats, from row to row of the
    image and of the gradient, from voxel to voxel of both, and from channel to channel of the sums.
    """
    if not isinstance(channels, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    high, wide = channels.literal_value, vectors.literal_value
    signature = types.void(places, counts, steps, channels, vectors)
    number, index = ir.FloatType(), ir.IntType(64)
    vector = ir.VectorType(number, LANES)

    def emit(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        image, grad, out = (
            builder.inttoptr(a, number.as_pointer()) for a in cgutils.unpack_tuple(builder, arguments[0], 3)
        )
        rows, voxels = cgutils.unpack_tuple(builder, arguments[1], 2)
        image_row, grad_row, image_step, grad_step, out_step = cgutils.unpack_tuple(builder, arguments[2], 5)
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )

        def at(base: Any, steps: Any, step: Any) -> Any:
            return builder.gep(base, [builder.mul(steps, step)])

        def part(base: Any, n: int) -> Any:
            place = builder.gep(base, [ir.Constant(index, n * LANES)])
            return builder.bitcast(place, vector.as_pointer())

        def spread(base: Any, n: int) -> Any:
            none = ir.Constant(vector, ir.Undefined)
            value = builder.load(builder.gep(base, [ir.Constant(index, n)]))
            first = builder.insert_element(none, value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(first, none, zeros)

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(wide)] for _ in range(high)]
        for one in (s for row in sums for s in row):
            builder.store(ir.Constant(vector, [0.0] * LANES), one)
        with cgutils.for_range(builder, rows) as row:
            image_at, grad_at = at(image, row.index, image_row), at(grad, row.index, grad_row)
            with cgutils.for_range(builder, voxels) as voxel:
                source, flow = at(image_at, voxel.index, image_step), at(grad_at, voxel.index, grad_step)
                flows = [builder.load(part(flow, n), align=4) for n in range(wide)]
                for c in range(high):
                    value = spread(source, c)
                    for one, factor in zip(sums[c], flows, strict=True):
                        builder.store(builder.call(fused, [value, factor, builder.load(one)]), one)
        for c in range(high):
            target = at(out, ir.Constant(index, c), out_step)
            for n, one in enumerate(sums[c]):
                place = part(target, n)
                added = builder.fadd(builder.load(place, align=4), builder.load(one))
                builder.store(added, place, align=4)
        return context.get_dummy_value()

    return signature, emit


@compiled
def _span(offset: int, step: int, size: int, low: int, high: int) -> tuple[int, int]:
    """The n in [low, high) for which ``n * step + offset`` is in [0, size)."""
    first = max(low, -(offset // step)) if offset < 0 else low
    last = min(high, (size - 1 - offset) // step + 1) if size > offset else low
    return first, last


@compiled
def _products(
    places: tuple[int, int, int],
    counts: tuple[int, int],
    steps: tuple[int, int, int, int, int],
    size: tuple[int, int],
) -> None:
    """`_outer` for up to four channels and two vectors, whose numbers must be known when it is compiled."""
    channels, lanes = size
    if channels == 4 and lanes == 2 * LANES:
        _outer(places, counts, steps, 4, 2)
    elif channels == 4:
        _outer(places, counts, steps, 4, 1)
    else:
        for n in range(channels):
            one = (places[0] + 4 * n, places[1], places[2] + 4 * n * steps[4])
            if lanes == 2 * LANES:
                _outer(one, counts, steps, 1, 2)
            else:
                _outer(one, counts, steps, 1, 1)


@compiled
def _accumulate(
    image: Array, grad: Array, total: Array, stride: tuple[int, int, int], rows: int, jobs: tuple[int, int]
) -> None:
    """Add to ``total`` (kz, ky, kx, C, O) from (B, Z, Y, X, C) and (B, Z', Y', X', O), channels densely."""
    batch, size_z, size_y, size_x, before = image.shape
    _, out_z, out_y, out_x, after = grad.shape
    kz, ky, kx = total.shape[:3]
    sz, sy, sx = stride
    blocks = (before + 3) // 4
    steps = (sy * size_x * before, out_x * after, sx * before, after, after)
    for b in range(batch):
        for z in range(out_z):
            for start in range(0, out_y, rows):
                for job in range(jobs[0], jobs[1]):
                    place, c = job // blocks, 4 * (job % blocks)
                    dz = place // (ky * kx) - kz // 2
                    dy, dx = (place // kx) % ky - ky // 2, place % kx - kx // 2
                    first, last = _span(dy, sy, size_y, start, min(out_y, start + rows))
                    left, right = _span(dx, sx, size_x, 0, out_x)
                    if not 0 <= z * sz + dz < size_z or first >= last or left >= right:
                        continue
                    source = (b * size_z + z * sz + dz) * size_y + first * sy + dy
                    here = image.ctypes.data + 4 * ((source * size_x + left * sx + dx) * before + c)
                    flow = grad.ctypes.data + 4 * ((((b * out_z + z) * out_y + first) * out_x + left) * after)
                    sums = total.ctypes.data + 4 * ((place * before + c) * after)
                    counts = (last - first, right - left)
                    for o in range(0, after, 2 * LANES):
                        lanes, channels = min(after - o, 2 * LANES), min(before - c, 4)
                        _products((here, flow + 4 * o, sums + 4 * o), counts, steps, (channels, lanes))
