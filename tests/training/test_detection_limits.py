"""What a detector's training refuses, and the shares it keeps."""

from dataclasses import replace

import numpy as np
import pytest

from consilium.errors import ConfigurationError, RunError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid
from consilium.inference.preprocess import Preprocessing
from consilium.losses.detection import DetectionLoss
from consilium.metrics.detection import compute_nodule_dice
from consilium.training.candidate_patches import PatchConfig, train_segmenter
from consilium.training.cascade_evaluation import without_ignored
from consilium.training.config import Budget
from consilium.training.detection import (
    LUNG_WINDOW,
    DetectionCase,
    DetectionConfig,
    make_sample,
    train_detector,
)

CONFIG = DetectionConfig(
    structure="Nodule", preprocessing=Preprocessing(spacing_zyx_mm=(2, 2, 2), windows=LUNG_WINDOW)
)


def lone_case() -> DetectionCase:
    image = np.full((40, 44, 48), -850, np.int16)
    image[18:22, 28:32, 8:12] = 60
    return DetectionCase(
        case_id="x",
        image=image,
        grid=Grid((40, 44, 48), Affine.from_spacing((2.0, 2.0, 2.0))),
        centres_zyx=np.array([[19.5, 29.5, 9.5]]),
        diameters_mm=np.array([10.0]),
        ignored_zyx=np.zeros((0, 3)),
        mask=image > 0,
    )


def test_training_without_cases_or_things_is_refused() -> None:
    with pytest.raises(RunError, match="at least one training case"):
        train_detector([], CONFIG)
    empty = replace(lone_case(), centres_zyx=np.zeros((0, 3)), diameters_mm=np.zeros(0))
    patches = PatchConfig(structure="Nodule", preprocessing=CONFIG.preprocessing)
    with pytest.raises(RunError, match="outlined"):
        train_segmenter([empty], [np.zeros((0, 3))], patches)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rates"):
        replace(CONFIG, rate=0.0)
    with pytest.raises(ConfigurationError, match="crop_zyx"):
        replace(CONFIG, batch=2)
    with pytest.raises(ConfigurationError, match="hard_share"):
        DetectionLoss(hard_share=0.0)
    with pytest.raises(ConfigurationError, match="false_share"):
        PatchConfig(structure="Nodule", preprocessing=CONFIG.preprocessing, false_share=1.0)


def test_a_part_of_a_scan_keeps_its_targets_in_place(rng: np.random.Generator) -> None:
    config = replace(CONFIG, crop_zyx=(24, 24, 24))
    seen = 0
    for _ in range(20):
        image, targets = make_sample(lone_case(), config, rng)
        assert image.shape == (1, 1, 24, 24, 24)
        assert targets.score.shape == (6, 6, 6)
        whole = int((image > 0).sum()) == 64
        if whole:
            assert targets.score.max() == 1.0
            seen += 1
    assert seen > 5


def test_the_same_seed_trains_to_the_same_loss() -> None:
    short = replace(CONFIG, budget=Budget(steps=3), crop_zyx=(24, 24, 24))
    one, two = (train_detector([lone_case()], short)[1] for _ in range(2))
    assert one == two


def test_a_contour_on_a_thing_that_is_ignored_is_no_false_one() -> None:
    outlined = np.array([[[1, 1, 0, 2, 2, 0, 0]]])
    reference = np.where(outlined == 1, 1, 0)
    drawn = np.array([[[4, 0, 0, 5, 0, 0, 6]]])
    counted = compute_nodule_dice(reference, without_ignored(drawn, outlined, reference))
    assert counted.false_positives == 1, "the one that touches nothing at all"
    assert counted.found == (True,)
