"""How much memory a pass takes, from the network's shape and the volume's: an estimate on the safe side."""

import math

from consilium.networks.config import NetworkConfig
from consilium.types import Shape

FLOAT = 4
PER_CONVOLUTION = 2
"""Maps that training keeps per convolution: its own output, and the norm's."""

TEMPORARY = 4
"""Maps of the finest scale that live for a moment in a step."""


def predict_training_bytes(network: NetworkConfig, shape_zyx: Shape, batch: int = 1) -> int:
    """Peak bytes of a training step on ``batch`` volumes of this shape, weights and optimiser included."""
    maps = _maps(network, shape_zyx)
    width = 2 if network.bf16 else FLOAT
    voxels = math.prod(shape_zyx)
    outside = voxels * (network.in_channels * (FLOAT + width) + network.out_channels * (1 + 3 * FLOAT))
    if network.kind == "iunet" and network.reversible:
        # The stream and its gradient at every scale, and three maps of half the channels in a branch.
        body = sum(2 * FLOAT * m for m in maps) + 3 * width * maps[0] + FLOAT * maps[0]
    elif network.checkpointing:
        kept = sum(2 * width * m for m in maps)
        body = kept + (2 + PER_CONVOLUTION * network.blocks[0] + TEMPORARY) * width * maps[0]
    else:
        encoder = sum(
            PER_CONVOLUTION * blocks * width * m for blocks, m in zip(network.blocks, maps, strict=True)
        )
        decoder = sum(
            (3 + PER_CONVOLUTION * blocks) * width * m
            for blocks, m in zip(network.blocks[:-1], maps[:-1], strict=True)
        )
        body = encoder + decoder + TEMPORARY * width * maps[0]
    return int(batch * (outside + body) + 6 * FLOAT * count_weights(network))


def predict_inference_bytes(network: NetworkConfig, shape_zyx: Shape) -> int:
    """Peak bytes of one pass without gradients over a volume of this shape."""
    maps = _maps(network, shape_zyx)
    width = 2 if network.bf16 else FLOAT
    outside = math.prod(shape_zyx) * (
        network.in_channels * (FLOAT + width) + network.out_channels * 3 * FLOAT
    )
    if network.kind == "iunet":
        body = sum(FLOAT * m for m in maps) + 3 * width * maps[0]
    else:
        body = sum(width * m for m in maps) + 4 * width * maps[0]
    return int(outside + body + FLOAT * count_weights(network))


def count_weights(network: NetworkConfig) -> int:
    """About how many weights the network has."""
    total = 0
    for channels, blocks, kernel in zip(network.channels, network.blocks, network.kernels, strict=True):
        total += 2 * (blocks + 1) * channels * channels * math.prod(kernel)
    return total


def _maps(network: NetworkConfig, shape_zyx: Shape) -> list[int]:
    """Channels times voxels at every scale."""
    size = list(shape_zyx)
    if network.kind == "iunet" and network.stem == "squeeze":
        size = [-(-n // k) for n, k in zip(size, network.stem_stride, strict=True)]
    maps = [network.channels[0] * math.prod(size)]
    for channels, step in zip(network.channels[1:], network.resampling, strict=True):
        size = [-(-n // k) for n, k in zip(size, step, strict=True)]
        maps.append(channels * math.prod(size))
    return maps
