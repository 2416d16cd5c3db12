"""The canonical parameters of a network: names and shapes that every framework shares; loads no framework."""

import math
from collections.abc import Iterator
from typing import TypeAlias

from consilium.networks.config import NetworkConfig, Step

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Canonical name -> shape; convolutions are laid out (out, in, z, y, x), whatever a framework uses inside."""

DECAYED_SUFFIX = "weight"
HEADS_PREFIX = "heads."


def list_parameters(config: NetworkConfig) -> Shapes:
    """Every trained parameter of a network with its shape, in the order in which the networks build them.

    ``docs/reference/parameters.md`` says what each one is.
    """
    return dict(_unet3d(config) if config.kind == "unet3d" else _iunet(config))


def choose_group(name: str, dimensions: int) -> str:
    """Which of the optimiser's groups a parameter belongs to.

    Returns:
        ``"heads"`` (their own rate, no decay), ``"decayed"`` (convolution and resampling weights) or
        ``"plain"`` (everything of one dimension: biases, norm weights).
    """
    if name.startswith(HEADS_PREFIX):
        return "heads"
    return "decayed" if dimensions > 1 and name.endswith(DECAYED_SUFFIX) else "plain"


def _three(step: Step) -> tuple[int, ...]:
    return step if len(step) == 3 else (1, *step)


def _unet3d(config: NetworkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    before = config.in_channels
    for scale, after in enumerate(config.channels):
        yield from _convolutions(config, f"encoder.{scale}", before, scale)
        before = after
    for scale in range(config.scales - 1):
        yield from _convolutions(config, f"decoder.{scale}", 2 * config.channels[scale], scale)
    for scale in range(config.scales - 1):
        after, before = config.channels[scale], config.channels[scale + 1]
        yield f"upsampling.{scale}.weight", (after, before, *_three(config.resampling[scale]))
        yield f"upsampling.{scale}.bias", (after,)
    for scale in range(config.heads):
        yield f"heads.{scale}.weight", (config.out_channels, config.channels[scale], 1, 1, 1)
        yield f"heads.{scale}.bias", (config.out_channels,)


def _convolutions(
    config: NetworkConfig, stage: str, before: int, scale: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    after = config.channels[scale]
    for place in range(config.blocks[scale]):
        yield f"{stage}.{place}.weight", (after, before, *_three(config.kernels[scale]))
        yield f"{stage}.{place}.bias", (after,)
        if config.norm == "instance":
            yield f"{stage}.{place}.norm_weight", (after,)
        before = after


def _iunet(config: NetworkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    block = math.prod(config.stem_stride) if config.stem == "squeeze" else 1
    yield "stem.weight", (config.channels[0], config.in_channels * block, *_three(config.kernels[0]))
    yield "stem.bias", (config.channels[0],)
    last = config.scales - 1
    for side, scales in (("encoder", last + 1), ("decoder", last)):
        for scale in range(scales):
            half = config.channels[scale] // 2
            weight = (half, half, *_three(config.kernels[scale]))
            for place in range(config.blocks[scale]):
                branch = f"trunk.{side}.{scale}.{place}"
                yield f"{branch}.first_weight", weight
                if config.norm == "instance":
                    yield f"{branch}.norm_weight", (half,)
                yield f"{branch}.first_bias", (half,)
                yield f"{branch}.second_weight", weight
                yield f"{branch}.second_bias", (half,)
    for scale, step in enumerate(config.resampling):
        yield f"trunk.resampling.{scale}.weight", (math.prod(step), math.prod(step))
    for scale in range(config.heads):
        outputs = config.out_channels * (1 if scale else block)
        yield f"heads.{scale}.weight", (outputs, config.channels[scale])
        yield f"heads.{scale}.bias", (outputs,)
