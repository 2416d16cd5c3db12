"""Make the plan: spacing, whole volumes or patches, network, batch; and measure what a step takes."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, MemoryPlanError
from consilium.geometry.volume import Grid
from consilium.inference.device import has_fast_bf16
from consilium.inference.memory import predict_training_bytes
from consilium.inference.model import channels_with_prior
from consilium.inference.preprocess import (
    CT_WINDOWS,
    OTHER_WINDOWS,
    Preprocessing,
    network_grid,
)
from consilium.networks.build import NetworkConfig, choose_resampling
from consilium.training.augment import mirror_order
from consilium.training.batch import Batch
from consilium.training.config import TrainingConfig
from consilium.training.facts import Facts, collect_facts, crop_choice
from consilium.training.plan import CROP_SHARE, Plan
from consilium.training.state import start_training, take_step
from consilium.types import Progress, Shape, Triple, no_progress

MEMORY_SHARE = 0.8
"""Part of the memory at hand that a training step may take."""

WHOLE_VOXELS = {"cpu": 2_500_000, "cuda": 40_000_000}
"""A typical whole volume is made coarser until it has about so many voxels: more take too long per step."""

PATCH_VOXELS = {"cpu": 200_000, "cuda": 2_100_000}
COARSEST_MM = 5.0
VOXELS_OF_SMALL_STRUCTURE = 100
"""A structure's 10th percentile volume must keep so many voxels when the grid is made coarser."""

CHANNELS = {
    ("unet3d", "cpu"): (16, 32, 64, 128, 160),
    ("unet3d", "cuda"): (32, 64, 128, 256, 320),
    ("iunet", "cpu"): (32, 64, 128, 256, 256),
    ("iunet", "cuda"): (64, 128, 256, 512, 512),
}
SMALLEST_PATCH = 16
PATCH_BATCH = 2


def make_plan(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    memory_bytes: int,
    device: torch.device,
    case_ids: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """Decide everything that the data and the memory decide.

    Args:
        dataset: The data.
        config: What a person decided; it goes before the plan's own choice.
        memory_bytes: At hand for training.
        device: To train on.
        case_ids: Cases to look at; None: all.
        progress: Told while images are sampled.

    Raises:
        DatasetError: No case with a usable contour.
        ConfigurationError: A structure that no case contours.
        MemoryPlanError: Nothing that was allowed fits; says what is needed and what would fit.
    """
    cases = [dataset.case(case_id) for case_id in (case_ids or dataset.case_ids)]
    facts = collect_facts(dataset, cases, config, progress=progress)
    return decide_plan(facts, config, memory_bytes=memory_bytes, device=device)


def decide_plan(
    facts: Facts, config: TrainingConfig, *, memory_bytes: int, device: torch.device, bf16: bool | None = None
) -> Plan:
    """The plan that follows from a data set's facts; the same facts give the same plan on every machine.

    Args:
        facts: Of one data set, or of several hospitals' together.
        config: What a person decided.
        memory_bytes: At hand for training.
        device: The kind of device to train on.
        bf16: Whether to compute in bfloat16; None: where this machine does so fast.

    Raises:
        MemoryPlanError: Nothing that was allowed fits.
    """
    structures, is_ct, kept = facts.structures, facts.is_ct, facts.kept_zyx
    reasons: list[str] = []
    crop = crop_choice(config, is_ct=is_ct)
    if crop == "body":
        reasons.append(f"Air around the body is cut away: it leaves about {np.prod(kept):.0%} of the voxels.")
    spacing = _choose_spacing(facts, config, device.type, reasons)
    preprocessing = Preprocessing(
        spacing_zyx_mm=spacing,
        windows=CT_WINDOWS if is_ct else OTHER_WINDOWS,
        intensity="hounsfield" if is_ct else "percentile",
        crop=crop,
    )
    shapes = np.array([network_grid(grid, spacing).shape_zyx for grid in facts.grids])
    typical = _shape(np.maximum(1, np.rint(np.median(shapes, axis=0) * kept)))
    largest = _shape(shapes.max(axis=0))
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    network = _choose_network(config, structures, preprocessing, typical, device.type, bf16, reasons)
    network, patch, batch = _fit(network, config, typical, largest, memory_bytes, device.type, reasons)
    crop_first = _choose_crops(network, config, patch, typical, device.type, reasons)
    mirror = mirror_order(structures)
    _say_about_mirror(structures, mirror, reasons)
    _say_about_small_structures(facts, spacing, reasons)
    return Plan(
        structures=structures,
        preprocessing=preprocessing,
        network=network,
        patch_zyx=patch,
        batch=batch,
        mirror=mirror,
        typical_zyx=typical,
        largest_zyx=largest,
        predicted_bytes=predict_training_bytes(network, patch or largest, batch),
        memory_bytes=memory_bytes,
        reasons=tuple(reasons),
        crop_zyx=crop_first,
    )


def measure_step_s(plan: Plan, config: TrainingConfig, device: torch.device, *, repeats: int = 2) -> float:
    """Seconds of one training step on a volume or patch of the plan's typical shape, after one to warm up."""
    shape = plan.patch_zyx or plan.typical_zyx
    state = start_training(plan, config, [0.01] * len(plan.structures), device=device)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(
        (plan.batch, plan.network.in_channels, *shape), generator=generator, dtype=torch.float32
    )
    reference = torch.zeros((plan.batch, len(plan.structures), *shape), dtype=torch.bool)
    reference[..., : shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = True
    batch = Batch(
        image=image,
        reference=reference,
        known=torch.ones((plan.batch, len(plan.structures)), dtype=torch.bool),
        case_ids=("measured",) * plan.batch,
    )
    take_step(state, batch, config, rate=1e-6)
    started = time.perf_counter()
    for _ in range(repeats):
        take_step(state, batch, config, rate=1e-6)
    return (time.perf_counter() - started) / repeats


def _choose_spacing(facts: Facts, config: TrainingConfig, device: str, reasons: list[str]) -> Triple:
    if config.spacing_zyx_mm is not None:
        reasons.append(f"The grid of {_mm(config.spacing_zyx_mm)} was asked for.")
        return config.spacing_zyx_mm
    grids, kept = [grid.to_canonical()[0] for grid in facts.grids], facts.kept_zyx
    median = np.median([grid.spacing_zyx_mm for grid in grids], axis=0)
    finest = _triple(median)
    voxels = _typical_voxels(grids, finest, kept)
    limit = WHOLE_VOXELS[device]
    if voxels <= limit or config.mode == "patch":
        reasons.append(f"The grid of {_mm(finest)} is the median of the images.")
        return finest
    edge = float(median.min())
    chosen = finest
    volumes = [v for found in facts.volumes_mm3.values() for v in found]
    smallest = float(np.percentile(volumes, 10)) if volumes else math.inf
    while voxels > limit and edge < COARSEST_MM:
        edge += 0.1
        wanted = _triple(np.maximum(median, edge))
        if smallest / math.prod(wanted) < VOXELS_OF_SMALL_STRUCTURE:
            break
        chosen, voxels = wanted, _typical_voxels(grids, wanted, kept)
    reasons.append(
        f"The grid is {_mm(chosen)} where the images' median is {_mm(finest)}: whole volumes then have about "
        f"{voxels / 1e6:.1f} million voxels, and small structures (10th percentile "
        f"{smallest / 1000:.2g} cm³) keep {smallest / math.prod(chosen):.0f} voxels."
    )
    return chosen


def _choose_network(
    config: TrainingConfig,
    structures: Sequence[str],
    preprocessing: Preprocessing,
    typical: Shape,
    device: str,
    bf16: bool,
    reasons: list[str],
) -> NetworkConfig:
    squeeze = config.network == "iunet" and config.stem == "squeeze"
    channels = config.channels or CHANNELS[config.network, device]
    scales = len(channels)
    while True:
        steps = choose_resampling(preprocessing.spacing_zyx_mm, scales, first_is_stem=squeeze)
        coarsest = [n / math.prod(step[a] for step in steps) for a, n in enumerate(typical)]
        if config.channels or scales <= max(2, len(config.scale_weights)) or max(coarsest) >= 8:
            break
        scales -= 1
    reasons.append(
        f"{config.network} with {scales} scales of {', '.join(str(c) for c in channels[:scales])} channels: "
        f"the coarsest has {' × '.join(f'{c:.0f}' for c in coarsest)} voxels; arithmetic in "
        f"{'bfloat16' if bf16 else 'float32'}."
    )
    if len(config.scale_weights) > scales:
        raise ConfigurationError(
            f"training: scale_weights must be at most one per scale; got {len(config.scale_weights)} "
            f"for {scales} scales."
        )
    heads = max(1, len(config.scale_weights))
    shared = NetworkConfig(
        kind=config.network,
        in_channels=channels_with_prior(preprocessing.channels, len(structures))
        if config.adaptation
        else preprocessing.channels,
        out_channels=len(structures),
        channels=channels[:scales],
        resampling=steps[1:] if squeeze else steps,
        stem=config.stem,
        stem_stride=steps[0] if squeeze else (),
        heads=heads,
        dropout=config.dropout,
        bf16=bf16,
    )
    return shared


def _fit(
    network: NetworkConfig,
    config: TrainingConfig,
    typical: Shape,
    largest: Shape,
    memory_bytes: int,
    device: str,
    reasons: list[str],
) -> tuple[NetworkConfig, Shape | None, int]:
    """Network (perhaps with checkpointing), patch and batch that fit in the memory."""
    usable = int(MEMORY_SHARE * memory_bytes)
    whole = predict_training_bytes(network, largest)
    wants_whole = config.mode == "whole" or (config.mode == "auto" and config.patch_zyx is None)
    if wants_whole and whole <= usable:
        reasons.append(
            f"Whole volumes, one per step: the largest, {_shape_text(largest)}, needs {_gib(whole)} of "
            f"{_gib(usable)} that may be used. Nothing is cut at a patch's border."
        )
        return network, None, 1
    lean = replace(network, checkpointing=network.kind == "unet3d")
    if wants_whole and lean != network and predict_training_bytes(lean, largest) <= usable:
        reasons.append(
            f"Whole volumes with checkpointing: without it the largest, {_shape_text(largest)}, needs "
            f"{_gib(whole)}, with it {_gib(predict_training_bytes(lean, largest))} of {_gib(usable)}."
        )
        return lean, None, 1
    patch = config.patch_zyx or _largest_patch(network, typical, usable, PATCH_VOXELS[device])
    if config.mode == "whole":
        raise MemoryPlanError(_what_would_fit(network, largest, whole, usable, patch))
    if patch is None or predict_training_bytes(network, patch, 1) > usable:
        raise MemoryPlanError(_what_would_fit(network, largest, whole, usable, None))
    batch = PATCH_BATCH if predict_training_bytes(network, patch, PATCH_BATCH) <= usable else 1
    why = (
        "was asked for"
        if config.patch_zyx or config.mode == "patch"
        else f"a whole volume needs {_gib(whole)}"
    )
    reasons.append(
        f"Patches of {_shape_text(patch)}, {batch} per step ({why}; {_gib(usable)} may be used): "
        f"they need {_gib(predict_training_bytes(network, patch, batch))}."
    )
    return network, patch, batch


def _choose_crops(
    network: NetworkConfig,
    config: TrainingConfig,
    patch: Shape | None,
    typical: Shape,
    device: str,
    reasons: list[str],
) -> Shape | None:
    """The crops that a training on whole volumes begins with; None where volumes are hardly larger."""
    if patch is not None or not config.crops or math.prod(typical) < 2 * PATCH_VOXELS[device]:
        return None
    crop = _largest_patch(network, typical, sys.maxsize, PATCH_VOXELS[device])
    if crop is not None:
        reasons.append(
            f"The first {CROP_SHARE:.0%} of the training see crops of {_shape_text(crop)} around "
            "structures, which teach more per second; whole volumes follow."
        )
    return crop


def _largest_patch(network: NetworkConfig, typical: Shape, usable: int, most_voxels: int) -> Shape | None:
    """The largest patch, whole steps of the network along every axis, that fits; None if none does."""
    step = network.total_stride
    shape = [max(k, -(-n // k) * k) for n, k in zip(typical, step, strict=True)]
    while (
        predict_training_bytes(network, (shape[0], shape[1], shape[2])) > usable
        or math.prod(shape) > most_voxels
    ):
        shrinkable = [a for a in range(3) if shape[a] > max(step[a], SMALLEST_PATCH)]
        if not shrinkable:
            return None
        axis = max(shrinkable, key=lambda a: shape[a] / step[a])
        shape[axis] -= step[axis]
    return shape[0], shape[1], shape[2]


def _what_would_fit(
    network: NetworkConfig, largest: Shape, whole: int, usable: int, patch: Shape | None
) -> str:
    message = (
        f"plan: the largest volume, {_shape_text(largest)} voxels, must fit in the memory to train on "
        f"whole volumes; {network.kind} needs {_gib(whole)} and {_gib(usable)} may be used."
    )
    fits = []
    if patch is not None:
        fits.append(f"patches of {_shape_text(patch)} voxels (--mode patch)")
    squeezed = replace(
        network,
        kind="iunet",
        stem="squeeze",
        channels=(16, 32, 64),
        resampling=(),
        kernels=(),
        blocks=(),
        stem_stride=(),
        heads=1,
        checkpointing=False,
    )
    need = predict_training_bytes(squeezed, largest)
    fits.append(
        f"an iunet with squeeze stem and 3 scales of 16, 32, 64 channels needs {_gib(need)}"
        + (" and fits" if need <= usable else ", which does not fit either")
    )
    factor = (whole / max(1, usable)) ** (1 / 3)
    fits.append(f"a grid coarser by {factor:.2f} along every axis (--spacing)")
    return f"{message} What helps: {'; '.join(fits)}."


def _say_about_mirror(structures: Sequence[str], mirror: tuple[int, ...] | None, reasons: list[str]) -> None:
    if mirror is None:
        reasons.append("Nothing is mirrored: a structure has a side, but its partner is not learnt.")
    elif list(mirror) != list(range(len(structures))):
        reasons.append("Mirrored images are used too; left and right structures then change places.")


def _say_about_small_structures(facts: Facts, spacing: Triple, reasons: list[str]) -> None:
    voxel_mm3 = math.prod(spacing)
    for name in facts.structures:
        volumes = facts.volumes_mm3.get(name, ())
        lost = sum(1 for v in volumes if v < 4 * voxel_mm3)
        if lost:
            reasons.append(
                f"{name}: in {lost} of {len(volumes)} cases it is smaller than 4 voxels of this grid and may "
                "vanish on it; use a finer grid (--spacing) if that matters."
            )


def _typical_voxels(grids: Sequence[Grid], spacing: Triple, kept: np.ndarray) -> float:
    shapes = [network_grid(grid, spacing).shape_zyx for grid in grids]
    return float(np.prod(np.median(shapes, axis=0) * kept))


def _shape(values: np.ndarray) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _triple(values: np.ndarray) -> Triple:
    z, y, x = (round(float(v), 4) for v in values)
    return z, y, x


def _mm(spacing: Triple) -> str:
    return " × ".join(f"{s:.3g}" for s in spacing) + " mm (z, y, x)"


def _shape_text(shape: Shape) -> str:
    return " × ".join(str(n) for n in shape)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
