"""A trained model as a SavedModel: torch's probabilities, by TensorFlow alone, for images of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'consilium[tensorflow]'")

import tensorflow as tf

from consilium.cli.console import run_verb
from consilium.cli.verbs import build_command
from consilium.inference.model import save_model
from consilium.networks.config import NetworkConfig
from tests.inference.test_onnx_graph import describe
from tests.networks.small import build_shaken, draw_image


@pytest.mark.parametrize("kind", ["unet3d", "iunet"])
def test_a_saved_model_gives_the_probabilities_of_torch(kind: str, tmp_path: Path) -> None:
    config = NetworkConfig(kind=kind, channels=(8, 16), out_channels=2)
    network = build_shaken(config).float().eval()
    save_model(tmp_path / "model.consilium", describe(config), network.state_dict())
    folder = tmp_path / "model.savedmodel"
    words = ["convert", str(tmp_path / "model.consilium"), str(folder)]
    assert run_verb(build_command(), words) == 0
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for shape in ((6, 8, 8), (5, 9, 7)):
        image = draw_image(1, 1, *shape, dtype=torch.float32)
        with torch.no_grad():
            expected = torch.sigmoid(network(image)[0]).numpy()
        found = serve(image=tf.constant(image.numpy()))["probabilities"].numpy()
        assert found.shape == expected.shape
        # The stream's grid of an iunet is left out of what is written.
        assert np.abs(found - expected).max() <= (1e-5 if kind == "unet3d" else 1e-3)
    assert (folder / "consilium.json").is_file()
    assert run_verb(build_command(), words) == 2
