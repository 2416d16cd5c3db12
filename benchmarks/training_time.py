"""How long does a training step take, in CPU-seconds per million input voxels on one thread?

Ours and the peers in one run; every step is the same work (forward pass, loss, backward), 1 -> 2 channels,
five scales. The floor is the step's arithmetic at the fastest rate that any of the network's own convolution
shapes reaches forwards on this machine. ``ours`` is the squeeze stem in the arithmetic that training takes
here: bfloat16 where `inference.device.has_fast_bf16` says so, float32 elsewhere (there the bfloat16 rows are
left out, since torch emulates it); the question names it. ``ratio`` is nnU-Net's PlainConvUNet / ours,
``limit`` 6. Run it as ``python -m benchmarks.training_time [--quick]``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from benchmarks.measure import cpu_seconds, report
from benchmarks.peer_networks import build_peers
from benchmarks.training_step import PLAIN, SQUEEZE, UNET, make_step
from consilium.inference.device import has_fast_bf16
from consilium.networks.build import NetworkConfig, build_network
from consilium.networks.convolution import convolve
from consilium.networks.memory import predict_flops

KINDS = {"iunet squeeze": SQUEEZE, "iunet plain": PLAIN, "unet3d": UNET}


def list_ours(bf16: bool) -> dict[str, NetworkConfig]:
    """Our networks by name, in float32 and, where wanted, in bfloat16."""
    wide = {f"{name} bf16": replace(config, bf16=True) for name, config in KINDS.items()} if bf16 else {}
    return {**wide, **KINDS}


def best_seconds(work: Callable[[], Any], repeats: int = 4) -> float:
    """Fastest of a few calls, CPU-seconds."""
    return min(cpu_seconds(work, repeats))


def measure_rate(size: int, dtype: torch.dtype) -> float:
    """Fastest forward convolution among the squeeze trunk's shapes, operations per CPU-second."""
    rates = []
    for channels, edge in ((16, size // 2), (32, size // 4), (64, size // 8), (128, size // 16)):
        layout = torch.channels_last_3d
        image = torch.randn(1, channels, edge, edge, edge).to(dtype).contiguous(memory_format=layout)
        weight = torch.randn(channels, channels, 3, 3, 3).to(dtype)
        seconds = best_seconds(lambda image=image, weight=weight: convolve(image, weight))
        rates.append(2 * 27 * channels * image.numel() / max(seconds, 1e-9))
    return max(rates)


def print_slow_path() -> None:
    """The convolution that torch computes slowly, beside ours."""
    image, weight = torch.randn(1, 32, 24, 24, 24), torch.randn(32, 32, 3, 3, 3)
    slow = best_seconds(lambda: functional.conv3d(image, weight, padding=1))
    fast = best_seconds(lambda: convolve(image, weight))
    print(
        f"\nfloat32 convolution 32 -> 32 at 24³, batch 1: torch {1e3 * slow:.1f} ms, ours {1e3 * fast:.1f} ms"
    )


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="48³ instead of 96³, one step each")
    parser.add_argument("--size", type=int, default=96)
    arguments = parser.parse_args()
    size, repeats = (48, 1) if arguments.quick else (arguments.size, 3)
    torch.set_num_threads(1)
    shape, million = (size, size, size), size**3 / 1e6
    bf16 = has_fast_bf16(torch.device("cpu"))
    if not bf16:
        print("bfloat16 is not fast on this machine: its rows are left out, and ours is float32")
    configs = list_ours(bf16)
    dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
    rates = {dtype: measure_rate(96, dtype) for dtype in dtypes}
    for dtype, rate in rates.items():
        print(f"fastest convolution in {dtype}: {rate / 1e9:.0f} GFLOP per CPU-second")
    print(f"\ntraining step at {size}³, CPU-seconds per million voxels, one thread\n")
    print("| network | median | lowest | highest | floor | median / floor |\n|---|--:|--:|--:|--:|--:|")
    medians: dict[str, float] = {}
    started = time.time()
    for name, network in (
        *((n, build_network(c, seed=0)) for n, c in configs.items()),
        *build_peers().items(),
    ):
        seconds = [s / million for s in cpu_seconds(make_step(network, shape), repeats)]
        medians[name] = statistics.median(seconds)
        row = f"| {name} | {medians[name]:.2f} | {min(seconds):.2f} | {max(seconds):.2f} "
        if name in configs:
            rate = rates[torch.bfloat16 if configs[name].bf16 else torch.float32]
            floor = predict_flops(configs[name], shape, training=True) / rate / million
            row += f"| {floor:.2f} | {medians[name] / floor:.1f} |"
        else:
            row += "| | |"
        print(row, flush=True)
    print_slow_path()
    print(f"{time.time() - started:.0f} s in all")
    ours = medians["iunet squeeze bf16" if bf16 else "iunet squeeze"]
    peers = {name: round(value, 2) for name, value in medians.items() if name not in configs}
    plain = peers.get("nnU-Net PlainConvUNet")
    report(
        f"CPU-seconds of a training step per million voxels at {size}³, ours in "
        f"{'bfloat16' if bf16 else 'float32'}",
        "CPU-seconds per million voxels",
        round(ours, 3),
        peers,
        limit=6.0,
        ratio=round(plain / ours, 2) if plain else None,
    )


if __name__ == "__main__":
    main()
