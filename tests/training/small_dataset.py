"""A dataset of small images with two balls of different brightness, learnt in seconds on one core."""

from pathlib import Path

import numpy as np

from consilium.cases.case import State
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.networks.config import NetworkConfig
from consilium.training.config import Budget, TrainingConfig
from consilium.training.plan import Plan
from consilium.training.planning import make_plan
from tests.cases.drafts import ball_mask

SHAPE = (16, 28, 24)
SPACING_MM = (3.0, 2.0, 2.0)


def small_case(number: int, *, known: tuple[str, ...] = ("Bladder", "Rectum"), absent: str = "") -> CaseDraft:
    """Soft tissue with a bright and a dark ball at places that depend on ``number``."""
    rng = np.random.default_rng(number)
    grid = Grid(SHAPE, Affine.from_spacing(SPACING_MM, origin_lps_mm=(float(number), -5.0, 20.0)))
    z, y, x = rng.uniform(-2, 2, 3)
    masks = {
        "Bladder": ball_mask(grid, (8 + z, 9 + y, 12 + x), 9.0),
        "Rectum": ball_mask(grid, (8 + x, 20 + z, 12 + y), 6.0),
    }
    values = rng.normal(0, 15, SHAPE)
    for name, step in (("Bladder", 80), ("Rectum", -120)):
        if name != absent:
            values[masks[name]] += step
    annotations = [
        AnnotationDraft(structure=name, reader="clinical", mask=lambda n=name: masks[n])
        for name in known
        if name != absent
    ]
    if absent:
        annotations.append(AnnotationDraft(structure=absent, reader="clinical", state=State.ABSENT))
    return CaseDraft(
        source_identity=f"case {number}",
        patient_identity=f"patient {number}",
        image=Volume(values.astype(np.int16), grid),
        modality="CT",
        annotations=tuple(annotations),
        importer="test",
        source_sha256={"image": f"{number:064x}"},
    )


def small_dataset(folder: Path, cases: int = 5) -> Dataset:
    """A dataset of so many patients; the last one's rectum is unknown."""
    # A fixed key: case ids decide the split and the order, and the test must not depend on chance.
    (folder / "private").mkdir(parents=True, mode=0o700)
    (folder / "private" / "key").write_text("5a" * 32)
    dataset = create_dataset(folder)
    for number in range(cases):
        known = ("Bladder",) if number == cases - 1 else ("Bladder", "Rectum")
        dataset.add(small_case(number, known=known))
    return dataset


def small_config(**changes: object) -> TrainingConfig:
    """Settings that learn the balls in some dozen steps."""
    values: dict[str, object] = {
        "network": "unet3d",
        "channels": (8, 16),
        "rate": 1e-2,
        "crop": "none",
        "watch": "off",
        **changes,
    }
    return TrainingConfig(**values)  # type: ignore[arg-type]


def small_plan(dataset: Dataset, config: TrainingConfig) -> Plan:
    """The plan for plenty of memory on a CPU."""
    import torch

    return make_plan(dataset, config, memory_bytes=4 << 30, device=torch.device("cpu"))


__all__ = ["Budget", "NetworkConfig", "small_case", "small_config", "small_dataset", "small_plan"]
