"""What a network will need before it is built: peak memory of a step, and its arithmetic."""

import math
from dataclasses import replace

import torch

from consilium.networks.blocks import Triple, as_three
from consilium.networks.build import build_network
from consilium.networks.config import NetworkConfig
from consilium.networks.convolution import SLOW_BELOW
from consilium.networks.weight_gradient import is_processor_suited

FLOAT = 4
"""Bytes of a float32 number."""

_SCRATCH_PLANES, _SCRATCH_MOST = 115, 75_000_000
"""oneDNN holds this per thread for a bfloat16 weight gradient: planes of the finest map, bytes at most."""


def count_parameters(config: NetworkConfig) -> int:
    """How many learnable numbers the network has; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(config).parameters())


def predict_peak_bytes(
    config: NetworkConfig,
    shape_zyx: tuple[int, ...],
    *,
    training: bool,
    bf16: bool | None = None,
    checkpointing: bool | None = None,
    batch: int = 1,
) -> int:
    """Peak of live tensors of one step, bytes.

    Counted: image, boolean reference, activations, logits, all gradients. Not counted: the weights, the
    optimiser's state, and what the process and oneDNN hold beside (about 0.4 GiB on a CPU). Within 15 % of
    what ``benchmarks/training_memory.py`` measures.

    Args:
        config: The network.
        shape_zyx: Voxels of the image; two numbers for two dimensions.
        training: A training step, or one pass without gradients.
        bf16: None: as configured.
        checkpointing: None: as configured.
        batch: Images at once.
    """
    config = replace(
        config,
        bf16=config.bf16 if bf16 is None else bf16,
        checkpointing=config.checkpointing if checkpointing is None else checkpointing,
    )
    shape = _as_three(shape_zyx)
    maps = [batch * size for size in count_map_numbers(config, shape)]
    voxels = batch * math.prod(_padded(config, shape))
    outside = FLOAT * config.in_channels * voxels
    if not training:
        return outside + _inference_body(config, maps, voxels)
    # Per structure and voxel: reference, logit, and the logit's gradient.
    outside += config.out_channels * voxels * (1 + 2 * FLOAT) + FLOAT * count_parameters(config)
    if config.bf16:
        outside += _scratch_bytes(config, shape)
    if batch == 1 and _is_slow(config, shape):
        outside += FLOAT * maps[0] * _count_copied_maps(config)
    if config.kind == "iunet":
        return outside + (_reversible_body if config.reversible else _plain_body)(config, maps)
    return outside + _unet_body(config, maps, voxels)


def predict_flops(config: NetworkConfig, shape_zyx: tuple[int, ...], *, training: bool) -> int:
    """Floating-point operations of the convolutions of one step (a multiplication and an addition count two).

    A training step counts the forward pass once, its recomputation where there is one, and twice the forward
    pass for the gradients.
    """
    shape = _as_three(shape_zyx)
    maps = count_map_numbers(config, shape)
    kernels = [math.prod(as_three(k)) for k in config.kernels]
    total = 0
    sides = [2] * (config.scales - 1) + [1]
    for scale, numbers in enumerate(maps):
        channels, blocks, side = config.channels[scale], config.blocks[scale], sides[scale]
        if config.kind == "iunet":
            # Two convolutions between halves: a quarter of the channels' square each.
            total += side * blocks * 2 * 2 * kernels[scale] * numbers * channels // 4
            continue
        before = config.channels[scale - 1] if scale else config.in_channels
        total += 2 * kernels[scale] * numbers * (before + (side * blocks - side) * channels)
        if side == 2:
            coarse = config.channels[scale + 1]
            total += 2 * kernels[scale] * numbers * 2 * channels + 2 * numbers * coarse
    if config.kind == "iunet":
        joined = math.prod(as_three(config.stem_stride)) if config.stem == "squeeze" else 1
        total += 2 * kernels[0] * maps[0] * config.in_channels * joined
        total += 2 * maps[0] * config.out_channels * joined
    else:
        total += 2 * maps[0] * config.out_channels
    if not training:
        return total
    if config.kind == "unet3d":
        return total * (4 if config.checkpointing else 3)
    if not config.reversible:
        return total * 3
    # Three convolutions are not run again: the last branch's two, and the first branch's second.
    spared = 3 if config.norm == "instance" else 1
    return total * 4 - spared * 2 * kernels[0] * maps[0] * config.channels[0] // 4


def count_map_numbers(config: NetworkConfig, shape_zyx: Triple) -> list[int]:
    """Channels times voxels of each scale for one image, finest first."""
    size = list(_padded(config, shape_zyx))
    if config.kind == "iunet" and config.stem == "squeeze":
        size = [n // k for n, k in zip(size, as_three(config.stem_stride), strict=True)]
    numbers = [config.channels[0] * math.prod(size)]
    for channels, step in zip(config.channels[1:], config.resampling, strict=True):
        size = [-(-n // k) for n, k in zip(size, as_three(step), strict=True)]
        numbers.append(channels * math.prod(size))
    return numbers


def _as_three(shape: tuple[int, ...]) -> Triple:
    return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def _padded(config: NetworkConfig, shape: Triple) -> Triple:
    if config.kind == "unet3d":
        return shape
    total = as_three(config.total_stride)
    sizes = [-(-n // k) * k for n, k in zip(shape, total, strict=True)]
    return sizes[0], sizes[1], sizes[2]


def _width(config: NetworkConfig) -> int:
    return 2 if config.bf16 else FLOAT


def _is_slow(config: NetworkConfig, shape: Triple) -> bool:
    """Whether oneDNN is called by name at the finest scale, which copies what it reads."""
    numbers, depth = count_map_numbers(config, shape)[0], _padded(config, shape)
    stem = as_three(config.stem_stride) if config.kind == "iunet" and config.stem == "squeeze" else (1, 1, 1)
    row = numbers // max(1, depth[2] // stem[2]) // (2 if config.kind == "iunet" else 1)
    return not config.bf16 and row <= SLOW_BELOW


def _count_copied_maps(config: NetworkConfig) -> int:
    if config.kind == "unet3d" and not config.checkpointing:
        return 2
    return 0 if is_processor_suited() else 1


def _scratch_bytes(config: NetworkConfig, shape: Triple) -> int:
    plane = count_map_numbers(config, shape)[0] // max(1, shape[0]) * 2
    if config.kind == "iunet":
        stem = as_three(config.stem_stride)[0] if config.stem == "squeeze" else 1
        plane = plane * stem // 2
    return torch.get_num_threads() * min(_SCRATCH_MOST, _SCRATCH_PLANES * plane)


def _reversible_body(config: NetworkConfig, maps: list[int]) -> int:
    """The stream and its gradient down to a scale, and four maps of half its channels in a branch there."""
    streams, most = 0, 0
    for scale, numbers in enumerate(maps):
        streams += 2 * FLOAT * numbers
        rows = FLOAT * numbers if scale else 0
        most = max(most, streams + max(4 * _width(config) * numbers // 2, rows))
    return most


def _plain_body(config: NetworkConfig, maps: list[int]) -> int:
    """Ordinary autograd over the same trunk: per coupling a new half of the stream and two maps."""
    width = _width(config)
    per_coupling = FLOAT + 2 * width + (width if config.bf16 else 0)
    kept = 0
    for scale, numbers in enumerate(maps):
        sides = 1 if scale == len(maps) - 1 else 2
        kept += numbers // 2 * (per_coupling * sides * config.blocks[scale] + FLOAT * sides)
    return kept + 2 * FLOAT * maps[0]


def _unet_body(config: NetworkConfig, maps: list[int], voxels: int) -> int:
    """Two maps per convolution and the joined skip per decoder scale; three maps in the norm's gradient."""
    width = _width(config)
    image = 2 * config.in_channels * voxels if config.bf16 else 0
    if config.checkpointing:
        stages = sum(maps) + sum(maps[:-1])
        return image + width * (stages + (2 * config.blocks[0] + 2) * maps[0] + maps[0] // 2)
    kept = sum(2 * blocks * numbers for blocks, numbers in zip(config.blocks, maps, strict=True))
    kept += sum(
        (2 + 2 * blocks) * numbers for blocks, numbers in zip(config.blocks[:-1], maps[:-1], strict=True)
    )
    return image + width * (kept + 2 * maps[0])


def _inference_body(config: NetworkConfig, maps: list[int], voxels: int) -> int:
    width = _width(config)
    logits = FLOAT * config.out_channels * voxels
    if config.kind == "iunet":
        branch = 3 * width * maps[0] // 2
        return FLOAT * maps[0] + max(branch, 2 * logits)
    joined = maps[0] * (5 if len(maps) > 1 else 2)
    return max(width * (sum(maps[1:-1]) + joined), width * maps[0] + 2 * logits)
