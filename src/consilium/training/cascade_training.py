"""Training of a cascade: the detector, then the contours around things and its own false candidates."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from consilium.cases.dataset import Dataset
from consilium.errors import RunError
from consilium.inference.candidates import decode_maps
from consilium.inference.cascade import Cascade
from consilium.inference.cascade_file import CASCADE_FILE, load_cascade, save_cascade
from consilium.inference.preprocess import to_channels
from consilium.networks.detector import Detector
from consilium.training.candidate_patches import train_segmenter
from consilium.training.cascade_run import CascadeRun
from consilium.training.detection import (
    DetectionCase,
    DetectionConfig,
    load_detection_cases,
    train_detector,
)
from consilium.training.learner import Sitting
from consilium.types import Array, Progress, no_progress

DETECTOR_STATE, CONTOURS_STATE = "detector.safetensors", "contours.safetensors"
FALSE_PER_CASE = 12
LEAST_FALSE_SCORE = 0.02
CLEAR_MM = 2.0
"""A candidate further than this from every thing's surface is a false one."""

USE = "Proposes candidates and contours that a person must look at and correct. No medical device."


def train_cascade(
    dataset: Dataset,
    run: CascadeRun,
    *,
    progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Cascade | None:
    """Train both networks and write the cascade into the run's folder; goes on where a state was kept.

    Returns:
        The cascade, or None if it was stopped; everything is kept then.

    Raises:
        RunError: A training case cannot be used, or a loss is no number.
    """
    missing = set(run.split.training) - set(dataset.case_ids)
    if missing:
        raise RunError(
            f"dataset: must hold every case of the run's split; {len(missing)} are missing. Name the dataset "
            "that the run was started on."
        )
    ids = run.split.training
    reader = run.config.reader
    cases = load_detection_cases(dataset, ids, run.detection, reader=reader, progress=progress)
    sitting = Sitting(
        checkpoint=run.folder / DETECTOR_STATE,
        fingerprint=run.fingerprint,
        progress=progress,
        should_stop=should_stop,
        name="training the detector",
    )
    detector, _, finished = train_detector(cases, run.detection, sitting=sitting)
    if not finished:
        return None
    false_lps = find_false_candidates(detector, cases, run.detection, progress=progress)
    if run.patches.preprocessing != run.detection.preprocessing:
        fine = replace(run.detection, preprocessing=run.patches.preprocessing)
        cases = load_detection_cases(dataset, ids, fine, reader=reader, progress=progress)
    false = [case.grid.affine.to_indices(points) for case, points in zip(cases, false_lps, strict=True)]
    sitting = replace(sitting, checkpoint=run.folder / CONTOURS_STATE, name="training the contours")
    segmenter, _, finished = train_segmenter(cases, false, run.patches, sitting=sitting)
    if not finished:
        return None
    cascade = Cascade(
        detector=detector,
        description=run.detection.describe(),
        segmenter=segmenter,
        card=make_card(run, cases, sum(map(len, false))),
    )
    save_cascade(run.folder / CASCADE_FILE, cascade)
    return load_cascade(run.folder / CASCADE_FILE)


def find_false_candidates(
    detector: Detector,
    cases: Sequence[DetectionCase],
    config: DetectionConfig,
    *,
    progress: Progress = no_progress,
) -> list[Array]:
    """Per case (K, 3) in LPS mm: the surest candidates that are neither a thing nor to be ignored."""
    device = next(detector.parameters()).device
    found = []
    for done, case in enumerate(cases):
        image = torch.from_numpy(np.ascontiguousarray(case.image[:])).to(device)
        with torch.inference_mode():
            maps = detector(to_channels(image, config.preprocessing.windows)[None])[0].cpu()
        candidates = decode_maps(maps, case.grid, least_score=LEAST_FALSE_SCORE)
        points = np.array([c.centre_lps_mm for c in candidates]).reshape(-1, 3)
        things = case.grid.affine.to_points(np.concatenate([case.centres_zyx, case.ignored_zyx]))
        radii = np.concatenate([case.diameters_mm / 2, np.full(len(case.ignored_zyx), 5.0)])
        away = np.linalg.norm(points[:, None] - things[None], axis=-1)
        found.append(points[(away > radii + CLEAR_MM).all(axis=1)][:FALSE_PER_CASE])
        progress("collecting false candidates", done + 1, len(cases))
    return found


def make_card(run: CascadeRun, cases: Sequence[DetectionCase], false: int) -> dict[str, object]:
    """What a person should know before using it: counts, nothing of a single patient."""
    return {
        "use": USE,
        "structure": run.config.structure,
        "training_cases": len(run.split.training),
        "validation_cases": len(run.split.validation),
        "things_in_training": sum(len(case.diameters_mm) for case in cases),
        "false_candidates_in_training": false,
        "least_readers": run.config.least_readers,
        "seed": run.config.seed,
    }
