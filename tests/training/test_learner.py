"""The loop of a cascade's networks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from consilium.errors import RunError
from consilium.training.config import Budget
from consilium.training.learner import Sitting, learn, start_learner


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(tmp_path: Path) -> None:
    network = nn.ModuleDict({"body": nn.Linear(2, 2), "heads": nn.ModuleList([nn.Linear(2, 1)])})
    learner = start_learner(network, rate=1e-3, head_rate=1e-2)

    def finite_loss_without_slope(step: int) -> Tensor:
        value: Tensor = network["heads"][0](network["body"](torch.ones(1, 2)))
        return (value * 0).sqrt().sum() if step == 1 else value.square().sum()

    sitting = Sitting(checkpoint=tmp_path / "state.safetensors")
    with pytest.raises(RunError, match="gradient must be finite"):
        learn(learner, finite_loss_without_slope, Budget(steps=2), sitting, rate=1e-3, steps_per_epoch=1)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
