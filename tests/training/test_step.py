"""One step: unknown structures, the prior, the rate, the average, a federation of one site."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cases.dataset import Dataset
from consilium.errors import CheckpointError, ConfigurationError, RunError
from consilium.training.augment import Augmentation
from consilium.training.batch import Batch, choose_cases, make_batch
from consilium.training.config import Budget, TrainingConfig
from consilium.training.data import PreparedCase, prepare_cases
from consilium.training.loop import output_prior, recipe_of
from consilium.training.plan import Plan
from consilium.training.run_folder import Run
from consilium.training.site import SiteTask, get_parameters, put_parameters, update_at_site
from consilium.training.start import split_labelled
from consilium.training.state import TrainingState, rate_at, start_training, take_step
from tests.training.small_dataset import small_config, small_dataset, small_plan


class Setting:
    """A plan, prepared cases and a fresh state."""

    def __init__(self, dataset: Dataset, **changes: object) -> None:
        self.config = small_config(**changes)
        self.plan: Plan = small_plan(dataset, self.config)
        split = split_labelled(dataset, self.config)
        self.run = Run(
            folder=Path("nowhere"), config=self.config, plan=self.plan, split=split, budget=Budget(steps=9)
        )
        self.cases: list[PreparedCase] = prepare_cases(
            dataset, dataset.case_ids, self.plan.structures, self.plan.preprocessing
        )
        self.recipe = recipe_of(self.run)

    def state(self) -> TrainingState:
        prior = output_prior(self.cases, len(self.plan.structures))
        return start_training(self.plan, self.config, prior, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "dataset")


def gradients(setting: Setting, batch: Batch) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def keep(named: object) -> None:
        found.update({name: p.grad.clone() for name, p in named if p.grad is not None})  # type: ignore[attr-defined]

    take_step(setting.state(), batch, setting.config, rate=1e-3, change_gradients=keep)
    return found


@pytest.mark.parametrize("network", ["unet3d", "iunet"])
def test_an_unknown_structure_gives_exactly_zero_gradient(dataset: Dataset, network: str) -> None:
    setting = Setting(dataset, network=network, channels=(16, 32), scale_weights=(1.0, 0.5))
    batch = make_batch(setting.recipe, setting.cases, 0)
    known = torch.tensor([[True, False]])
    other = batch.reference.clone()
    other[:, 1] = ~other[:, 1]
    first = gradients(setting, Batch(**{**vars(batch), "known": known}))
    second = gradients(setting, Batch(**{**vars(batch), "known": known, "reference": other}))
    assert first
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for scale in range(2):
        weight = first[f"heads.{scale}.weight"]
        rows = weight.reshape(2, -1)
        assert rows[0].abs().max() > 0
        assert torch.count_nonzero(rows[1]) == 0


def test_before_the_first_step_every_structure_has_its_share_as_probability(dataset: Dataset) -> None:
    setting = Setting(dataset)
    prior = output_prior(setting.cases, 2)
    image = make_batch(setting.recipe, setting.cases, 0).image
    logits = setting.state().network(image)[0]
    assert prior[0] == pytest.approx(np.mean([c.voxels[0] / c.grid.voxels for c in setting.cases]), rel=1e-6)
    for s, p in enumerate(prior):
        assert float(logits[0, s].detach().sigmoid().median()) == pytest.approx(p, rel=0.5)


def test_every_epoch_visits_each_case_once(dataset: Dataset) -> None:
    cases = Setting(dataset).cases
    for epoch in range(3):
        ids = [choose_cases(cases, epoch * 5 + k, 1, 7)[0].case_id for k in range(5)]
        assert sorted(ids) == sorted(case.case_id for case in cases)
    orders = {tuple(choose_cases(cases, e, 5, 7)[k].case_id for k in range(5)) for e in range(6)}
    assert len(orders) > 1


def test_a_batch_is_the_same_whenever_it_is_made(dataset: Dataset) -> None:
    for changes in ({}, {"mode": "patch", "patch_zyx": (8, 16, 16)}):
        setting = Setting(dataset, **changes)
        first, second = (make_batch(setting.recipe, setting.cases, 3) for _ in range(2))
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.reference, second.reference)
        assert first.case_ids == second.case_ids


def test_half_of_the_patches_hold_the_middle_of_a_structure(dataset: Dataset) -> None:
    setting = Setting(dataset, mode="patch", patch_zyx=(4, 8, 8))
    held = sum(
        int(make_batch(setting.recipe, setting.cases, step).reference.flatten(2).any(2).any())
        for step in range(60)
    )
    assert held > 30
    assert make_batch(setting.recipe, setting.cases, 0).image.shape[2:] == (4, 8, 8)


def test_a_loss_that_is_no_number_names_step_and_case(dataset: Dataset) -> None:
    setting = Setting(dataset)
    batch = make_batch(setting.recipe, setting.cases, 0)
    state = setting.state()
    broken = Batch(**{**vars(batch), "image": batch.image * math.nan})
    with pytest.raises(RunError, match=rf"step 0, case {batch.case_ids[0]}"):
        take_step(state, broken, setting.config, rate=1e-3)


def test_the_rate_rises_and_falls_to_one_per_cent() -> None:
    config = TrainingConfig(rate=1.0, warm_up=0.1)
    assert rate_at(0.05, config) == pytest.approx(0.5)
    assert rate_at(0.1, config) == pytest.approx(1.0)
    assert rate_at(0.55, config) == pytest.approx(0.505)
    assert rate_at(1.0, config) == pytest.approx(0.01)


def test_the_average_of_still_weights_is_the_weights(dataset: Dataset) -> None:
    setting = Setting(dataset)
    state = setting.state()
    batch = make_batch(setting.recipe, setting.cases, 0)
    take_step(state, batch, setting.config, rate=1e-3)
    for name, value in state.network.state_dict().items():
        assert torch.equal(state.average[name], value), "one step: the average of one"
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    take_step(state, batch, setting.config, rate=1e-3)
    name = next(iter(before))
    middle = (before[name] + state.network.state_dict()[name]) / 2
    assert torch.allclose(state.average[name], middle, atol=1e-7)


def test_a_federation_of_one_site_equals_local_training_bit_for_bit(dataset: Dataset) -> None:
    setting = Setting(dataset, dropout=0.1)
    local = setting.state()
    for step in range(6):
        rate = rate_at(step / 6, setting.config)
        take_step(local, make_batch(setting.recipe, setting.cases, step), setting.config, rate=rate)
    task = SiteTask(
        plan=setting.plan,
        recipe=setting.recipe,
        config=setting.config,
        steps=2,
        total_steps=6,
    )
    site, parameters = setting.state(), get_parameters(setting.state())
    for _ in range(3):
        update = update_at_site(site, parameters, setting.cases, task)
        parameters = {name: np.array(value) for name, value in update.parameters.items()}
    assert update.cases == 5
    assert update.cases_by_structure == {"Bladder": 5, "Rectum": 4}
    for name, value in local.network.state_dict().items():
        assert np.array_equal(parameters[name], value.numpy()), name


def test_parameters_of_another_network_are_refused(dataset: Dataset) -> None:
    state = Setting(dataset).state()
    with pytest.raises(CheckpointError, match="fit the network"):
        put_parameters(state, {"heads.0.weight": np.zeros((1, 1))})


def test_learned_scale_weights_are_trained(dataset: Dataset) -> None:
    setting = Setting(dataset, scale_weights=(1.0, 1.0), learned_weights=True)
    state = setting.state()
    for step in range(3):
        take_step(state, make_batch(setting.recipe, setting.cases, step), setting.config, rate=1e-2)
    assert state.loss.weights != (1.0, 1.0)


@pytest.mark.parametrize("values", [{}, {"steps": 3, "epochs": 2}, {"minutes": 0.0}, {"steps": -1}])
def test_a_budget_is_one_positive_number(values: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Budget(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"network": "unet"}, {"stem": "none"}, {"mode": "half"}, {"patch_zyx": (0, 32, 32)}]
)
def test_impossible_settings_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        TrainingConfig(**values)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    config = TrainingConfig(structures=("A", "B"), scale_weights=(1.0, 0.5), spacing_zyx_mm=(3.0, 1.0, 1.0))
    assert TrainingConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigurationError, match="unknown"):
        TrainingConfig.from_json({"learning_rat": 3})


def test_patches_look_for_rare_structures_more_often(dataset: Dataset) -> None:
    setting = Setting(dataset, mode="patch", patch_zyx=(2, 4, 4))
    known = [case for case in setting.cases if case.known.all()]
    counts = []
    for focus in ((1.0, 0.0), (0.0, 1.0)):
        recipe = replace(setting.recipe, focus=focus)
        held = [make_batch(recipe, known, step).reference.flatten(2).any(2)[0] for step in range(40)]
        counts.append(torch.stack(held).sum(0).tolist())
    assert counts[0][0] > 2 * counts[0][1]
    assert counts[1][1] > 2 * counts[1][0]
    assert recipe_of(setting.run, setting.cases).focus == (1 / 5, 1 / 4)


def test_a_patch_that_lies_outside_the_image_is_air(dataset: Dataset) -> None:
    setting = Setting(dataset, mode="patch", patch_zyx=(2, 2, 2))
    recipe = replace(
        setting.recipe,
        augmentation=Augmentation(shift_mm=500, probability=1, noise_hu=0, offset_hu=0, gain=0),
    )
    batches = [make_batch(recipe, setting.cases, step) for step in range(10)]
    assert any((batch.image == -1).all() and not batch.reference.any() for batch in batches)
