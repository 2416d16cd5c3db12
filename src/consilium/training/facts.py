"""What a plan is made from: grids, the body's share of them, and the structures' volumes; nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.errors import ConfigurationError, DatasetError
from consilium.geometry.volume import Grid
from consilium.inference.preprocess import Preprocessing, prepare_image
from consilium.training.config import TrainingConfig
from consilium.training.data import usable_annotation
from consilium.types import FloatArray, Progress, Triple, no_progress

SAMPLED_IMAGES = 3
COARSE_MM = 4.0
"""Grid on which the body is looked for."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A data set as the plan sees it.

    Args:
        structures: To learn, in order.
        is_ct: Whether every image is a CT.
        grids: Of the images. Only the distribution along each axis counts, so grids that no image has,
            but with the same distributions, give the same plan.
        kept_zyx: Share of each axis that the body takes; ones where nothing is cut.
        volumes_mm3: Structure -> volume of every contour.
    """

    structures: tuple[str, ...]
    is_ct: bool
    grids: Sequence[Grid]
    kept_zyx: FloatArray
    volumes_mm3: Mapping[str, Sequence[float]]


def collect_facts(
    dataset: Dataset, cases: Sequence[Case], config: TrainingConfig, *, progress: Progress = no_progress
) -> Facts:
    """The facts of a data set; a few images are looked at to see how much of them the body takes.

    Raises:
        DatasetError: No case contours anything.
        ConfigurationError: A structure asked for that no case contours.
    """
    structures = choose_structures(cases, config)
    is_ct = all(case.image.modality == "CT" for case in cases)
    body = crop_choice(config, is_ct=is_ct) == "body"
    shares = measure_kept(dataset, sample_cases(cases), progress=progress) if body else np.ones((1, 3))
    return Facts(
        structures=structures,
        is_ct=is_ct,
        grids=[case.image.grid for case in cases],
        kept_zyx=np.asarray(np.mean(shares, axis=0)),
        volumes_mm3={name: list_volumes_mm3(cases, name, config) for name in structures},
    )


def crop_choice(config: TrainingConfig, *, is_ct: bool) -> str:
    """``"body"`` where air is cut away, ``"none"`` elsewhere."""
    return ("body" if is_ct else "none") if config.crop == "auto" else config.crop


def sample_cases(cases: Sequence[Case]) -> list[Case]:
    """A few cases from the smallest image to the largest."""
    ranked = sorted(cases, key=lambda case: (case.image.grid.voxels, case.case_id))
    picks = {round(k * (len(ranked) - 1) / max(1, SAMPLED_IMAGES - 1)) for k in range(SAMPLED_IMAGES)}
    return [ranked[pick] for pick in sorted(picks)]


def measure_kept(dataset: Dataset, cases: Sequence[Case], *, progress: Progress = no_progress) -> FloatArray:
    """Share of each axis (z, y, x) that the body takes in each case: (N, 3)."""
    shares = []
    for done, case in enumerate(cases):
        spacing = case.image.grid.to_canonical()[0].spacing_zyx_mm
        z, y, x = (max(s, COARSE_MM) for s in spacing)
        coarse: Triple = (z, y, x)
        image = dataset.load_image(case)
        full = prepare_image(image, Preprocessing(spacing_zyx_mm=coarse))
        cut = prepare_image(image, Preprocessing(spacing_zyx_mm=coarse, crop="body"))
        shares.append(np.array(cut.grid.shape_zyx) / full.grid.shape_zyx)
        progress("looking at images", done + 1, len(cases))
    return np.asarray(shares)


def list_volumes_mm3(cases: Sequence[Case], structure: str, config: TrainingConfig) -> list[float]:
    """Volume of the structure in every case that contours it."""
    found = [usable_annotation(case, structure, config.reader) for case in cases]
    return [a.volume_cm3 * 1000 for a in found if a is not None and a.state is State.CONTOURED]


def choose_structures(cases: Sequence[Case], config: TrainingConfig) -> tuple[str, ...]:
    """The structures to learn: those asked for, or all that some case contours.

    Raises:
        DatasetError: No case contours anything.
        ConfigurationError: A structure asked for that no case contours.
    """
    contoured = sorted(
        {
            name
            for case in cases
            for name in case.structures
            if (found := usable_annotation(case, name, config.reader)) is not None
            and found.state is State.CONTOURED
        }
    )
    if not contoured:
        raise DatasetError("dataset: at least one case must have a contour to learn from; none has.")
    missing = [name for name in config.structures if name not in contoured]
    if missing:
        raise ConfigurationError(
            f"training: every structure must be contoured in some case; {missing} are not. "
            f"Known are {contoured}."
        )
    return config.structures or tuple(contoured)
