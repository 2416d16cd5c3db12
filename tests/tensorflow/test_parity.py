"""The same outputs and the same steps as torch, number for number."""

import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'consilium[tensorflow]'")

import tensorflow as tf

from consilium.networks.config import NetworkConfig
from consilium.tensorflow.network import Network
from consilium.training.config import TrainingConfig
from tests.networks.small import build_shaken, draw_image
from tests.tensorflow.steps import SMALL, make_batch_of, start_pair

FLAT = {"dims": 2}
THICK = {"resampling": ((1, 2, 2), (2, 2, 2))}
MATRIX = {
    "unet3d": ({"kind": "unet3d"}, (5, 6, 7)),
    "unet3d without norm": ({"kind": "unet3d", "norm": "none"}, (4, 8, 8)),
    "unet3d of thick slices": ({"kind": "unet3d", **THICK}, (3, 9, 10)),
    "unet3d with uneven kernels": (
        {"kind": "unet3d", "kernels": ((1, 3, 5), (3, 1, 3), (3, 3, 3))},
        (6, 7, 5),
    ),
    "unet3d of slices": ({"kind": "unet3d", **FLAT}, (9, 11)),
    "unet3d of one voxel": ({"kind": "unet3d", "norm": "none"}, (1, 1, 2)),
    "iunet": ({"kind": "iunet"}, (5, 6, 7)),
    "iunet without norm": ({"kind": "iunet", "norm": "none"}, (8, 8, 8)),
    "iunet of thick slices": ({"kind": "iunet", **THICK}, (3, 9, 10)),
    "iunet with a plain stem": ({"kind": "iunet", "stem": "plain", "kernels": ((1, 3, 5),) * 3}, (6, 7, 5)),
    "iunet of slices": ({"kind": "iunet", **FLAT}, (9, 11)),
    "iunet by plain backward": ({"kind": "iunet", "reversible": False}, (5, 6, 7)),
}
LOSSES = {
    "finest scale": {},
    "three scales": {"scale_weights": (1.0, 0.5, 0.25)},
    "learned weights": {"scale_weights": (1.0, 1.0, 1.0), "learned_weights": True},
}


def build(name: str, heads: int = 3) -> tuple[NetworkConfig, tuple[int, ...]]:
    changes, shape = MATRIX[name]
    return NetworkConfig(**{**SMALL, **changes, "heads": heads}), shape


@pytest.fixture
def eagerly():
    """Without graphs: a tenth of the time for networks this small. The other tests run graphs."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("name", list(MATRIX))
def test_outputs_are_those_of_torch(name: str) -> None:
    config, shape = build(name)
    network = build_shaken(config)
    twin = Network(config, {n: v.detach().numpy() for n, v in network.named_parameters()})
    image = draw_image(2, 1, *shape)
    expected, found = network(image), twin(image.numpy(), training=True)
    assert [tuple(one.shape) for one in found] == [tuple(one.shape) for one in expected]
    for ours, theirs in zip(expected, found, strict=True):
        assert np.abs(ours.detach().numpy() - theirs.numpy()).max() <= 1e-12
    assert len(twin(image.numpy())) == 1


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("descent", [True, False], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("name", list(MATRIX))
def test_a_step_is_that_of_torch_in_float64(name: str, loss: str, descent: bool) -> None:
    config = TrainingConfig(head_rate=2e-2, **LOSSES[loss])
    network, shape = build(name, max(1, len(config.scale_weights)))
    pair = start_pair(network, config, torch.float64, plain_descent=descent)
    ours, theirs = pair.step(make_batch_of(shape, 3), rate=config.rate)
    assert abs(ours - theirs) <= 1e-12
    assert pair.largest_difference() <= 1e-12
    assert np.allclose(pair.tensorflow_state.recent, pair.torch_state.recent, atol=1e-12)


@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
@pytest.mark.parametrize("descent", [True, False], ids=["SGD", "AdamW"])
def test_three_steps_on_images_of_two_shapes_in_graphs(kind: str, descent: bool) -> None:
    config = TrainingConfig(rate=1e-2, head_rate=3e-2, scale_weights=(1.0, 0.5))
    network = NetworkConfig(**{**SMALL, "kind": kind, "blocks": (1, 1, 1), "heads": 2})
    pair = start_pair(network, config, torch.float64, plain_descent=descent)
    for number, shape in enumerate([(5, 6, 7), (8, 4, 6), (5, 6, 7)]):
        ours, theirs = pair.step(make_batch_of(shape, 3, seed=number), rate=1e-2)
        assert abs(ours - theirs) <= 1e-12
    assert pair.largest_difference() <= 1e-11


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
@pytest.mark.parametrize("descent", [True, False], ids=["SGD", "AdamW"])
def test_a_step_in_float32_differs_by_rounding_only(kind: str, descent: bool) -> None:
    config = TrainingConfig(head_rate=2e-3, average=0.0)
    network = NetworkConfig(**{**SMALL, "kind": kind, "heads": 1})
    pair = start_pair(network, config, torch.float32, plain_descent=descent)
    gradients: dict[str, np.ndarray] = {}

    def keep(named: object) -> None:
        gradients.update({name: p.grad.numpy().copy() for name, p in named})  # type: ignore[attr-defined]

    batch = make_batch_of((12, 16, 16), 3)
    pair.tensorflow_state.take_step(batch, config, rate=1e-3, change_gradients=keep)
    pair.torch_step(batch, rate=1e-3)
    # Adam's first step is the gradient's sign: where the gradient itself is rounding, so is the sign.
    told = {
        name: np.full(flow.shape, True) if descent else (flow == 0.0) | (np.abs(flow) > 1e-6)
        for name, flow in gradients.items()
    }
    assert sum(mask.sum() for mask in told.values()) > 0.9 * sum(mask.size for mask in told.values())
    assert pair.largest_difference(told) <= 1e-6
    assert pair.largest_difference() <= 2.1e-3
