"""How much memory does a training step take, per input voxel, and does the plan know it beforehand?

Peak of live tensors of one training step, 1 -> 2 channels, five scales; ours and the peers in one run.
``ours`` is the squeeze stem in float32, ``limit`` its bar in bytes per voxel, ``ratio`` ours / limit.
Run it as ``python -m benchmarks.training_memory [--quick]``.
"""

import argparse
from dataclasses import replace

from benchmarks.live_tensors import peak_live_bytes
from benchmarks.measure import report
from benchmarks.peer_networks import build_peers
from benchmarks.training_step import PLAIN, SQUEEZE, UNET, make_step
from consilium.networks.build import NetworkConfig, build_network
from consilium.networks.memory import predict_peak_bytes

LIMIT = 110.0

OURS: dict[str, NetworkConfig] = {
    "iunet squeeze": SQUEEZE,
    "iunet squeeze bf16": replace(SQUEEZE, bf16=True),
    "iunet squeeze, depth doubled": replace(SQUEEZE, blocks=(4, 4, 4, 4)),
    "iunet plain": PLAIN,
    "iunet plain bf16": replace(PLAIN, bf16=True),
    "iunet plain, depth doubled": replace(PLAIN, blocks=(4,) * 5),
    "iunet squeeze, not reversible": replace(SQUEEZE, reversible=False),
    "iunet anisotropic": NetworkConfig(
        out_channels=2, channels=(32, 64, 128), resampling=((1, 2, 2), (2, 2, 2)), stem_stride=(1, 2, 2)
    ),
    "unet3d": UNET,
    "unet3d bf16": replace(UNET, bf16=True),
    "unet3d checkpointing": replace(UNET, checkpointing=True),
    "unet3d checkpointing bf16": replace(UNET, checkpointing=True, bf16=True),
}


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="48³ instead of 160³")
    parser.add_argument("--size", type=int, default=160)
    arguments = parser.parse_args()
    size = 48 if arguments.quick else arguments.size
    shape, voxels = (size, size, size), size**3
    print(f"peak of live tensors at {size}³, bytes per input voxel\n")
    print("| network | measured | without weight gradients | predicted | predicted / measured |")
    print("|---|--:|--:|--:|--:|")
    figures = {}
    for name, config in OURS.items():
        network = build_network(config, seed=0)
        weights = 4 * sum(p.numel() for p in network.parameters())
        peak = peak_live_bytes(make_step(network, shape))
        predicted = predict_peak_bytes(config, shape, training=True)
        figures[name] = peak / voxels
        print(
            f"| {name} | {peak / voxels:.1f} | {(peak - weights) / voxels:.1f} | {predicted / voxels:.1f} "
            f"| {predicted / peak:.2f} |",
            flush=True,
        )
    peers = {}
    for name, network in build_peers().items():
        peers[name] = round(peak_live_bytes(make_step(network, shape)) / voxels, 1)
        print(f"| {name} | {peers[name]:.1f} | | | |", flush=True)
    ours = round(figures["iunet squeeze"], 1)
    report(
        f"peak of live tensors of a training step at {size}³",
        "bytes per input voxel",
        ours,
        peers,
        limit=LIMIT,
        ratio=round(ours / LIMIT, 3),
    )


if __name__ == "__main__":
    main()
