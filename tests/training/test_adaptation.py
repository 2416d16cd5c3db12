"""Training a network for adaptation, and what it does with an earlier day."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from consilium.adaptation.calibrate import KnownPair, choose_strengths, deform_patient
from consilium.adaptation.deformation import Deformation
from consilium.adaptation.propagate import StructureShape
from consilium.adaptation.refine import refine
from consilium.errors import CheckpointError, ConfigurationError
from consilium.geometry.volume import Volume
from consilium.inference.contour import contour_volume
from consilium.inference.model import Model, load_model
from consilium.inference.preprocess import PRIOR_REACH_MM, Prior, depth_in
from consilium.inference.sliding_window import predict_windows
from consilium.inference.strength import CARD_ENTRY, follow
from consilium.inference.whole_volume import predict_whole
from consilium.metrics.overlap import dice
from consilium.training.earlier_day import earlier_day
from consilium.training.start import train_dataset
from tests.training.small_dataset import Budget, small_case, small_config, small_dataset


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    dataset = small_dataset(tmp_path_factory.mktemp("data") / "dataset")
    folder: Path = tmp_path_factory.mktemp("runs") / "run"
    train_dataset(dataset, folder, small_config(adaptation=True), Budget(steps=50))
    return load_model(folder)


WHOLLY = {"Bladder": 1.0, "Rectum": 1.0}


def test_the_earlier_day_is_the_same_patient_a_little_elsewhere() -> None:
    rng = np.random.default_rng(0)
    image = np.full((20, 40, 40), -90, np.int16)
    masks = np.zeros((2, 20, 40, 40), bool)
    masks[:, 6:14, 12:28, 12:28] = True
    image[masks[0]] = 40
    known = np.array([True, False])
    prior = earlier_day(image, masks, known, spacing_zyx_mm=(3, 3, 3), rng=rng)
    again = earlier_day(image, masks, known, spacing_zyx_mm=(3, 3, 3), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(prior.image, again.image)
    assert (prior.depth_mm[1] == -PRIOR_REACH_MM).all(), "a structure that is not known was not drawn"
    assert 0.6 < dice(masks[0], prior.depth_mm[0] > 0) < 1
    inside, outside = prior.image[prior.depth_mm[0] > 2], prior.image[prior.depth_mm[0] < -2]
    assert inside.mean() - outside.mean() == pytest.approx(130, abs=15), "image and structure move together"


def test_a_network_for_adaptation_knows_what_it_is(model: Model) -> None:
    assert model.description.takes_prior
    assert model.description.network.in_channels == 2 * model.preprocessing.channels + 2
    with pytest.raises(ConfigurationError, match="consilium adapt --model"):
        list(contour_volume(model, small_case(5).image))


def test_the_network_follows_its_prior_and_the_image(model: Model) -> None:
    case = small_case(77)
    grid = case.image.grid
    truth = {a.structure: a.mask().astype(bool) for a in case.annotations if a.mask is not None}
    shapes = {name: StructureShape.of(mask, grid) for name, mask in truth.items()}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    field = np.zeros((3, *grid.shape_zyx), np.float32)
    field[1] = 4.0
    off = Deformation(field, grid, np.eye(4))
    found = refine(model, case.image, case.image, off, {"Bladder": known["Bladder"]}, strengths=WHOLLY)
    assert found.source == "refined"
    assert set(found.probability) == {"Bladder"}, "what was not drawn is not made up"
    carried = known["Bladder"].carried(off, grid)
    refined = dice(truth["Bladder"], found.mask("Bladder", carried, grid))
    assert refined > dice(truth["Bladder"], carried) + 0.02


def test_the_depth_of_a_slab_is_known_on_paper() -> None:
    mask = np.zeros((3, 20, 3), bool)
    mask[:, 8:12] = True
    depth = depth_in(mask, (2.0, 2.0, 2.0))
    np.testing.assert_allclose(depth[1, 4:16, 1], [-7, -5, -3, -1, 1, 3, 3, 1, -1, -3, -5, -7])
    assert depth[1, 0, 1] == -PRIOR_REACH_MM
    assert (depth_in(np.zeros((3, 4, 5), bool), (2, 2, 2)) == -PRIOR_REACH_MM).all()
    assert (depth_in(np.ones((3, 4, 5), bool), (2, 2, 2)) == PRIOR_REACH_MM).all()


def test_a_network_that_says_nothing_leaves_the_propagated_contours_where_they_are(model: Model) -> None:
    case = small_case(78)
    grid = case.image.grid
    truth = {a.structure: a.mask().astype(bool) for a in case.annotations if a.mask is not None}
    shape = StructureShape.of(truth["Bladder"], grid)
    assert shape is not None
    field = np.full((3, *grid.shape_zyx), 2.3, np.float32)
    moved = Deformation(field, grid, np.eye(4))
    silent = replace(model, network=copy.deepcopy(model.network))
    with torch.no_grad():
        for head in silent.network.heads:
            head.weight.zero_()
            head.bias.zero_()
    found = refine(silent, case.image, case.image, moved, {"Bladder": shape}, strengths=WHOLLY)
    carried = shape.carried(moved, grid)
    assert dice(found.mask("Bladder", carried, grid), carried) > 0.97


def test_a_network_of_an_earlier_version_is_refused(model: Model) -> None:
    case = small_case(78)
    old = replace(model, description=replace(model.description, card={}))
    still = Deformation(np.zeros((3, *case.image.grid.shape_zyx), np.float32), case.image.grid, np.eye(4))
    with pytest.raises(CheckpointError, match="Train it again"):
        refine(old, case.image, case.image, still, {})


def test_a_network_is_followed_as_far_as_its_card_says(model: Model) -> None:
    case = small_case(79)
    still = Deformation(np.zeros((3, *case.image.grid.shape_zyx), np.float32), case.image.grid, np.eye(4))
    truth = {a.structure: a.mask().astype(bool) for a in case.annotations if a.mask is not None}
    shapes = {n: s for n, m in truth.items() if (s := StructureShape.of(m, case.image.grid)) is not None}
    with pytest.raises(CheckpointError, match="consilium train --resume"):
        refine(model, case.image, case.image, still, shapes)
    own = replace(model.description, card={**model.description.card, CARD_ENTRY: {"Bladder": 0.5}})
    found = refine(replace(model, description=own), case.image, case.image, still, shapes)
    assert set(found.probability) == {"Bladder"}
    whole = refine(model, case.image, case.image, still, shapes, strengths=WHOLLY).probability["Bladder"]
    depth = shapes["Bladder"].depth_carried(still, found.grid)
    half = found.probability["Bladder"]
    between = (half - whole) * (half - 1 / (1 + np.exp(-depth / 1.5)))
    assert (between <= 1e-5).all(), "a mean of two logits lies between them"
    mute = replace(model, network=torch.nn.Identity())
    nothing = refine(mute, case.image, case.image, still, shapes, strengths={"Bladder": 0.0})
    assert not nothing.probability, "where nothing is followed, the network is not asked"


@pytest.mark.parametrize(("spoilt", "expected"), [("network", 0.0), ("propagation", 1.0)])
def test_the_strength_is_what_patients_with_a_known_deformation_allow(
    spoilt: str, expected: float, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small_case(80)
    masks = {a.structure: a.mask().astype(bool) for a in case.annotations if a.mask is not None}

    def follow_wrongly(probability: np.ndarray, depth: np.ndarray, strength: float) -> np.ndarray:
        true = follow(probability, depth, strength)
        return np.roll(true, round(8 * strength), axis=1) if spoilt == "network" else true

    def deform_and_remember(*given: Any) -> KnownPair:
        pairs.append(deform_patient(*given))
        return pairs[-1]

    def find_it(planning: Volume, repeat: Volume) -> SimpleNamespace:
        truth = pairs[-1].truth
        off = truth.displacement_lps_mm + np.float32(0.0 if spoilt == "network" else 3.5)
        return SimpleNamespace(deformation=replace(truth, displacement_lps_mm=off))

    pairs: list[KnownPair] = []
    monkeypatch.setattr("consilium.adaptation.refine.follow", follow_wrongly)
    monkeypatch.setattr("consilium.adaptation.calibrate.register", find_it)
    monkeypatch.setattr("consilium.adaptation.calibrate.deform_patient", deform_and_remember)
    chosen = choose_strengths(model, [(case.image, masks)], 1)
    assert chosen["Bladder"] == expected


def test_a_known_deformation_moves_structures_by_its_amount() -> None:
    case = small_case(81)
    masks = {a.structure: a.mask().astype(bool) for a in case.annotations if a.mask is not None}
    pair = deform_patient(case.image, masks, 8.0, np.random.default_rng(0))
    union = np.logical_or.reduce(list(masks.values()))
    points = case.image.grid.affine.to_points(np.argwhere(union))
    moved = np.linalg.norm(pair.truth.to_planning(points) - points, axis=1)
    assert 5.0 < moved.max() < 9.0
    assert set(pair.shapes) == set(pair.masks) == set(masks)
    for name, mask in masks.items():
        expected = StructureShape.of(mask, case.image.grid)
        assert expected is not None
        assert dice(pair.masks[name], expected.carried(pair.truth, case.image.grid)) == 1.0
    assert pair.planning.array[union].std() > 5.0, "noise on both days"
    assert np.abs(pair.planning.array - case.image.array).std() > 5.0


def test_windows_see_the_same_prior_as_a_whole_pass(model: Model) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(-100, 100, (16, 24, 24)).astype(np.int16)
    depth = rng.uniform(-9, 9, (2, 16, 24, 24)).astype(np.float32)
    prior = Prior(image=image.astype(np.float32), depth_mm=depth)
    whole = predict_whole(model, image, prior)
    # A window as large as the image is the whole pass.
    np.testing.assert_allclose(predict_windows(model, image, (16, 24, 24), prior=prior), whole, atol=1e-5)
