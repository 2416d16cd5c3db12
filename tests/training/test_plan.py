"""The plan follows the data and the memory, and says why."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.live_tensors import peak_live_bytes
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.errors import ConfigurationError, DatasetError, MemoryPlanError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.inference.memory import predict_training_bytes
from consilium.training.config import TrainingConfig
from consilium.training.facts import Facts
from consilium.training.plan import Plan
from consilium.training.planning import decide_plan, make_plan, measure_step_s
from tests.cases.drafts import ball_mask
from tests.training.small_dataset import small_case, small_config, small_dataset

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def large_dataset(folder: Path, radius_mm: float) -> Dataset:
    """Two CT of 64 × 256 × 256 voxels of 3 × 1 × 1 mm with a ball."""
    dataset = create_dataset(folder)
    grid = Grid((64, 256, 256), Affine.from_spacing((3.0, 1.0, 1.0)))
    ball = ball_mask(grid, (30, 120, 130), radius_mm)
    for number in range(2):
        dataset.add(
            CaseDraft(
                source_identity=str(number),
                patient_identity=str(number),
                image=Volume(np.zeros(grid.shape_zyx, np.int16), grid),
                modality="CT",
                annotations=(AnnotationDraft(structure="Ball", reader="clinical", mask=lambda: ball),),
                importer="test",
                source_sha256={"n": str(number)},
            )
        )
    return dataset


def test_small_images_are_trained_whole_on_their_own_grid(dataset: Dataset) -> None:
    plan = make_plan(dataset, TrainingConfig(), memory_bytes=8 * GIB, device=CPU)
    assert plan.structures == ("Bladder", "Rectum")
    assert plan.patch_zyx is None
    assert plan.preprocessing.spacing_zyx_mm == (3.0, 2.0, 2.0)
    assert plan.largest_zyx == (16, 28, 24)
    assert plan.mirror == (0, 1)
    assert any("Whole volumes" in reason for reason in plan.reasons)
    assert plan.predicted_bytes <= 8 * GIB


def test_a_plan_survives_json(dataset: Dataset) -> None:
    for config in (TrainingConfig(), TrainingConfig(network="unet3d", mode="patch")):
        plan = make_plan(dataset, config, memory_bytes=8 * GIB, device=CPU)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_anisotropic_grids_are_halved_in_the_plane_first(tmp_path: Path) -> None:
    dataset = large_dataset(tmp_path / "data", 30.0)
    for network in ("unet3d", "iunet"):
        config = TrainingConfig(network=network, spacing_zyx_mm=(3.0, 1.0, 1.0))
        made = make_plan(dataset, config, memory_bytes=64 * GIB, device=CPU).network
        first = made.resampling[0] if network == "unet3d" else made.stem_stride
        assert first == (1, 2, 2)
        assert made.kernels[0] == ((1, 3, 3) if network == "unet3d" else (3, 3, 3))


def test_large_volumes_get_a_coarser_grid_unless_a_structure_is_small(tmp_path: Path) -> None:
    config = TrainingConfig(crop="none")
    big = make_plan(
        large_dataset(tmp_path / "big", 30.0), config, memory_bytes=64 * GIB, device=CPU
    ).preprocessing.spacing_zyx_mm
    assert big[0] == 3.0
    assert big[1] == big[2] > 1.0
    small = make_plan(
        large_dataset(tmp_path / "small", 4.0), config, memory_bytes=64 * GIB, device=CPU
    ).preprocessing.spacing_zyx_mm
    assert small == (3.0, 1.0, 1.0)


def test_little_memory_gives_checkpointing_then_patches_then_an_error(tmp_path: Path) -> None:
    dataset = large_dataset(tmp_path / "data", 30.0)
    config = TrainingConfig(network="unet3d", crop="none")
    plenty = make_plan(dataset, config, memory_bytes=64 * GIB, device=CPU)
    whole = plenty.predicted_bytes
    lean = make_plan(dataset, config, memory_bytes=int(whole * 0.9), device=CPU)
    assert lean.patch_zyx is None
    assert lean.network.checkpointing
    patches = make_plan(dataset, config, memory_bytes=int(whole * 0.2), device=CPU)
    assert patches.patch_zyx is not None
    assert patches.predicted_bytes <= 0.8 * whole * 0.2
    assert all(n % k == 0 for n, k in zip(patches.patch_zyx, patches.network.total_stride, strict=True))
    with pytest.raises(MemoryPlanError, match=r"needs .* GiB .* What helps: .*iunet.*--spacing"):
        make_plan(dataset, config, memory_bytes=1 << 20, device=CPU)


def test_whole_volumes_that_do_not_fit_are_refused_with_what_would(tmp_path: Path) -> None:
    dataset = large_dataset(tmp_path / "data", 30.0)
    config = TrainingConfig(crop="none", mode="whole", spacing_zyx_mm=(3.0, 1.0, 1.0))
    with pytest.raises(MemoryPlanError, match=r"64 × 256 × 256 .*patches of .*--mode patch"):
        make_plan(dataset, config, memory_bytes=GIB // 2, device=CPU)


@pytest.mark.parametrize("network", ["iunet", "unet3d"])
def test_a_volume_that_cannot_fit_is_refused_before_anything_is_allocated(
    network: str, tmp_path: Path
) -> None:
    dataset = large_dataset(tmp_path / "data", 30.0)
    config = TrainingConfig(network=network, crop="none", mode="whole", spacing_zyx_mm=(3.0, 1.0, 1.0))
    refused: list[MemoryPlanError] = []

    def refuse() -> None:
        with pytest.raises(MemoryPlanError) as caught:
            make_plan(dataset, config, memory_bytes=GIB // 4, device=CPU)
        refused.append(caught.value)

    taken = peak_live_bytes(refuse)
    message = str(refused[0])
    needed = float(re.search(rf"{network} needs ([0-9.]+) GiB", message)[1])  # type: ignore[index]
    assert needed > 0.25
    assert taken < 0.01 * needed * GIB
    for helps in ("--mode patch", "squeeze stem and 3 scales", "--spacing"):
        assert helps in message


def test_the_invertible_network_needs_less_than_the_unet(dataset: Dataset) -> None:
    shape = (128, 128, 128)
    unet = make_plan(dataset, TrainingConfig(network="unet3d"), memory_bytes=GIB, device=CPU).network
    iunet = make_plan(dataset, TrainingConfig(network="iunet"), memory_bytes=GIB, device=CPU).network
    assert predict_training_bytes(iunet, shape) < predict_training_bytes(unet, shape)


def test_structures_nobody_contoured_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Prostate"):
        make_plan(dataset, TrainingConfig(structures=("Prostate",)), memory_bytes=GIB, device=CPU)
    empty = create_dataset(tmp_path / "empty")
    empty.add(small_case(1, known=()))
    with pytest.raises(DatasetError, match="contour to learn from"):
        make_plan(empty, TrainingConfig(), memory_bytes=GIB, device=CPU)


def test_structures_smaller_than_the_grid_are_named(dataset: Dataset) -> None:
    config = TrainingConfig(spacing_zyx_mm=(12.0, 8.0, 8.0))
    plan = make_plan(dataset, config, memory_bytes=GIB, device=CPU)
    assert any(reason.startswith("Rectum: in 4 of 4 cases") for reason in plan.reasons)


def test_a_step_is_measured(dataset: Dataset) -> None:
    config = small_config()
    plan = make_plan(dataset, config, memory_bytes=GIB, device=CPU)
    assert 0 < measure_step_s(plan, config, CPU, repeats=1) < 10


def test_thick_slices_get_patches_that_are_small_in_the_plane() -> None:
    facts = Facts(
        structures=("Bladder",),
        is_ct=True,
        grids=[Grid((60, 512, 512), Affine.from_spacing((5.0, 0.7, 0.7)))],
        kept_zyx=np.ones(3),
        volumes_mm3={"Bladder": [5000.0]},
    )
    config = TrainingConfig(mode="patch", crop="none")
    plan = decide_plan(facts, config, memory_bytes=16 << 30, device=torch.device("cpu"), bf16=False)
    assert plan.patch_zyx is not None
    assert plan.patch_zyx[0] == 16
    assert all(n % step == 0 for n, step in zip(plan.patch_zyx, plan.network.total_stride, strict=True))


def test_whole_volumes_begin_with_crops_where_they_are_much_larger(tmp_path: Path, dataset: Dataset) -> None:
    large = large_dataset(tmp_path / "data", 30.0)
    plan = make_plan(large, TrainingConfig(crop="none"), memory_bytes=64 * GIB, device=CPU)
    assert plan.patch_zyx is None
    assert plan.crop_zyx is not None
    assert np.prod(plan.crop_zyx) < np.prod(plan.typical_zyx) / 2
    without = make_plan(large, TrainingConfig(crop="none", crops=False), memory_bytes=64 * GIB, device=CPU)
    assert without.crop_zyx is None
    assert make_plan(dataset, TrainingConfig(), memory_bytes=8 * GIB, device=CPU).crop_zyx is None
