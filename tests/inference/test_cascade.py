"""The cascade's parts: targets and decoding invert each other, losses, merging, file, nothing found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.errors import CheckpointError, ConfigurationError
from consilium.inference.candidates import (
    Candidate,
    DetectorDescription,
    decode_maps,
    find_candidates,
    image_to_output,
    output_to_image,
    suppress_neighbours,
)
from consilium.inference.cascade import Cascade, contour_instances
from consilium.inference.cascade_file import find_cascade, load_cascade, save_cascade
from consilium.inference.preprocess import Preprocessing
from consilium.losses.detection import DetectionLoss, detection_loss, make_targets
from consilium.networks.build import NetworkConfig
from consilium.networks.detector import OUTPUTS, Detector, DetectorConfig, build_detector
from consilium.training.candidate_patches import PatchConfig, train_segmenter
from consilium.training.config import Budget
from consilium.training.detection import (
    LUNG_WINDOW,
    DetectionCase,
    DetectionConfig,
    load_detection_cases,
    make_sample,
    train_detector,
)
from tests.training.balls import GRID, balls, dataset_of

PREPROCESSING = Preprocessing(spacing_zyx_mm=(2.0, 2.0, 2.0), windows=LUNG_WINDOW)
TRUNK = NetworkConfig(kind="unet3d", in_channels=16, out_channels=OUTPUTS, channels=(16, 24))
SMALL = DetectorConfig(stem_channels=12, trunk=TRUNK)


def maps_of(centres: list[tuple[float, float, float]], sizes: list[float]) -> torch.Tensor:
    """The maps of a perfect detector."""
    targets = make_targets(
        (12, 12, 12),
        [tuple(image_to_output(np.array(c))) for c in centres],
        sizes,
        voxel_mm=(8.0, 8.0, 8.0),
    )
    logit = torch.logit(targets.score.clamp(1e-4, 1 - 1e-4))
    return torch.cat([logit[None], targets.offset, targets.log_size[None]])


def test_decoding_inverts_the_targets() -> None:
    centres, sizes = [(10.3, 20.8, 31.1), (33.0, 9.4, 12.7)], [8.0, 21.0]
    found = decode_maps(maps_of(centres, sizes), GRID, least_score=0.5)
    assert len(found) == 2
    for centre, size in zip(centres, sizes, strict=True):
        point = GRID.affine.to_points(centre)
        nearest = min(found, key=lambda c: float(np.linalg.norm(point - c.centre_lps_mm)))
        assert np.allclose(nearest.centre_lps_mm, point, atol=1e-3)
        assert nearest.diameter_mm == pytest.approx(size, rel=1e-4)


def test_output_indices_invert_image_indices(rng: np.random.Generator) -> None:
    index = rng.uniform(0, 100, (20, 3))
    assert np.allclose(output_to_image(image_to_output(index)), index)
    assert image_to_output(np.array([1.5]))[0] == 0.0


def test_a_thing_outside_the_grid_leaves_no_target() -> None:
    targets = make_targets((4, 4, 4), [(9.0, 1.0, 1.0)], [10.0], voxel_mm=(8.0, 8.0, 8.0))
    assert targets.score.max() == 0


def test_near_candidates_are_one() -> None:
    sure = Candidate(centre_lps_mm=(0, 0, 0), diameter_mm=10, score=0.9)
    near = Candidate(centre_lps_mm=(4, 0, 0), diameter_mm=6, score=0.8)
    far = Candidate(centre_lps_mm=(6, 0, 0), diameter_mm=6, score=0.7)
    assert suppress_neighbours([far, near, sure]) == [sure, far]


def test_the_loss_is_least_for_the_right_maps() -> None:
    targets = make_targets((12, 12, 12), [(5.2, 6.1, 4.0)], [12.0], voxel_mm=(8.0, 8.0, 8.0))
    right = maps_of([(22.3, 25.9, 17.5)], [12.0])
    settings = DetectionLoss()
    best = float(detection_loss(right[None], [targets], settings))
    assert best < 0.2
    for channel, change in ((0, -12.0), (0, 12.0), (2, 0.5), (4, 1.0)):
        wrong = right.clone()
        wrong[channel] += change
        assert float(detection_loss(wrong[None], [targets], settings)) > best


def test_ignored_places_give_no_gradient() -> None:
    targets = make_targets((8, 8, 8), [], [], voxel_mm=(8.0, 8.0, 8.0), ignored_zyx=[(4.0, 4.0, 4.0)])
    maps = torch.zeros(1, OUTPUTS, 8, 8, 8, requires_grad=True)
    detection_loss(maps, [targets], DetectionLoss(hard_share=1.0)).backward()
    assert maps.grad is not None
    assert (maps.grad[0, 0, 3:6, 3:6, 3:6] == 0).all()
    assert maps.grad[0, 0, 0, 0, 0] > 0


def test_only_the_hardest_negatives_count() -> None:
    targets = make_targets((8, 8, 8), [], [], voxel_mm=(8.0, 8.0, 8.0))
    maps = torch.full((1, OUTPUTS, 8, 8, 8), -2.0)
    maps[0, 0, 2, 3, 4] = 2.0
    maps.requires_grad_(True)
    detection_loss(maps, [targets], DetectionLoss(hard_share=1 / 512)).backward()
    assert maps.grad is not None
    assert torch.nonzero(maps.grad).tolist() == [[0, 0, 2, 3, 4]]


def test_the_loss_gradient_equals_finite_differences() -> None:
    targets = make_targets((4, 4, 4), [(1.2, 2.1, 1.8)], [9.0], voxel_mm=(8.0, 8.0, 8.0))
    maps = torch.randn(1, OUTPUTS, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    maps.requires_grad_(True)
    settings = DetectionLoss(hard_share=1.0)
    assert torch.autograd.gradcheck(lambda m: detection_loss(m, [targets], settings), maps, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
def test_the_detector_takes_any_size(kind: str) -> None:
    trunk = NetworkConfig(kind=kind, in_channels=16, out_channels=OUTPUTS, channels=(16, 32), stem="plain")
    detector = build_detector(DetectorConfig(stem_channels=8, trunk=trunk), seed=0)
    maps = detector(torch.zeros(1, 1, 21, 30, 35))
    assert maps.shape == (1, OUTPUTS, 6, 8, 9)
    assert float(maps[0, 0].sigmoid().mean().detach()) == pytest.approx(1e-3, abs=1e-3)
    maps.sum().backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_a_detector_with_other_outputs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="outputs"):
        DetectorConfig(trunk=NetworkConfig(in_channels=16, out_channels=2))


def test_samples_put_the_target_where_the_thing_is(tmp_path: Path, rng: np.random.Generator) -> None:
    config = DetectionConfig(structure="Nodule", preprocessing=PREPROCESSING, ignored=("Non-nodule",))
    dataset = dataset_of(tmp_path / "data")
    (case, *_) = load_detection_cases(dataset, dataset.case_ids, config)
    assert case.ignored_zyx.shape == (1, 3)
    for _ in range(8):
        image, targets = make_sample(case, config, rng)
        score = targets.score
        index = np.array(np.unravel_index(int(score.argmax()), tuple(score.shape)))
        offset = targets.offset[:, index[0], index[1], index[2]].numpy()
        bright = torch.nonzero(image[0, 0] > 0).double().mean(dim=0).numpy()
        assert np.allclose(output_to_image(index + offset), bright, atol=0.3)


def test_training_finds_and_contours_balls_and_the_file_keeps_it(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data")
    config = DetectionConfig(
        structure="Nodule", preprocessing=PREPROCESSING, network=SMALL, budget=Budget(steps=60), rate=5e-3
    )
    cases = load_detection_cases(dataset, dataset.case_ids, config)
    detector, losses, finished = train_detector(cases, config)
    assert finished
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    patches = PatchConfig(
        structure="Nodule",
        preprocessing=PREPROCESSING,
        patch_zyx=(16, 16, 16),
        network=NetworkConfig(kind="unet3d", channels=(8, 16)),
        budget=Budget(steps=60),
        rate=5e-3,
    )
    segmenter, _, _ = train_segmenter(cases, [np.zeros((0, 3))] * 3, patches)
    cascade = Cascade(detector=detector, description=config.describe(), segmenter=segmenter)
    centre = (30.0, 18.0, 28.0)
    volume, labels = balls((centre, 14.0))
    result = contour_instances(cascade, volume)
    assert result.instances
    first = result.mask(1)
    overlap = 2 * np.count_nonzero(first & (labels > 0)) / (first.sum() + (labels > 0).sum())
    assert overlap > 0.8
    assert np.allclose(result.instances[0].candidate.centre_lps_mm, GRID.affine.to_points(centre), atol=5)
    digest = save_cascade(tmp_path / "model.consilium", cascade)
    again = load_cascade(tmp_path / "model.consilium")
    assert again.digest == digest
    assert np.array_equal(contour_instances(again, volume).labels, result.labels)
    assert find_cascade(tmp_path / "model.consilium") == tmp_path / "model.consilium"
    assert find_cascade(tmp_path) is None
    changed = bytearray((tmp_path / "model.consilium").read_bytes())
    changed[-5] ^= 1
    (tmp_path / "bad.consilium").write_bytes(changed)
    with pytest.raises(CheckpointError, match="digest"):
        load_cascade(tmp_path / "bad.consilium")


class _Silent(Detector):
    """Sees nothing anywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * 0 - 20.0


def test_nothing_found_is_an_answer_and_is_said() -> None:
    description = DetectorDescription(structure="Nodule", preprocessing=PREPROCESSING, network=SMALL)
    silent = _Silent(SMALL).eval()
    volume, _ = balls(((24.0, 24.0, 24.0), 12.0))
    assert find_candidates(silent, description, volume) == []
    case = DetectionCase(
        case_id="x",
        image=volume.array,
        grid=GRID,
        centres_zyx=np.array([[24.0, 24.0, 24.0]]),
        diameters_mm=np.array([12.0]),
        ignored_zyx=np.zeros((0, 3)),
        mask=volume.array > -200,
    )
    patches = PatchConfig(
        structure="Nodule", preprocessing=PREPROCESSING, patch_zyx=(16, 16, 16), budget=Budget(steps=1)
    )
    segmenter, _, _ = train_segmenter([case], [np.zeros((0, 3))], patches)
    result = contour_instances(Cascade(detector=silent, description=description, segmenter=segmenter), volume)
    assert result.instances == ()
    assert not result.labels.any()
    assert result.sentence == "Nodule: none found (candidates looked at: 0)."
