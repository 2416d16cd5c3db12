"""The ONNX graph gives the probabilities of the network it was written from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cli.console import run_verb
from consilium.cli.verbs import build_command
from consilium.inference.model import ModelDescription, load_model, save_model
from consilium.inference.onnx_graph import METADATA, build_onnx
from consilium.inference.preprocess import Preprocessing
from consilium.networks.config import NetworkConfig
from tests.networks.small import build_shaken, draw_image

SETTINGS = {"channels": (4, 16, 32), "out_channels": 2, "heads": 2, "blocks": (1, 2, 1)}
NETWORKS = [
    {"kind": "unet3d"},
    {"kind": "unet3d", "norm": "none", "resampling": ((1, 2, 2), (2, 2, 2))},
    {"kind": "iunet"},
    {"kind": "iunet", "norm": "none", "resampling": ((1, 2, 2), (2, 2, 2))},
    {"kind": "iunet", "stem": "plain"},
    {"kind": "iunet", "dims": 2},
]


def describe(network: NetworkConfig) -> ModelDescription:
    return ModelDescription(
        structures=("Bladder", "Rectum"),
        preprocessing=Preprocessing(spacing_zyx_mm=(2.0, 1.0, 1.0), windows=((-100.0, 100.0),)),
        network=network,
    )


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_the_graph_gives_the_network_s_probabilities(changes: dict[str, object]) -> None:
    pytest.importorskip("onnx", reason="needs onnx: pip install 'consilium[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs an independent reader of ONNX: onnxruntime")
    config = NetworkConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    network = build_shaken(config, torch.float32).eval()
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
    description = describe(config)
    session = runtime.InferenceSession(build_onnx(description, weights), providers=["CPUExecutionProvider"])
    stored = session.get_modelmeta().custom_metadata_map[METADATA]
    assert ModelDescription.from_json(json.loads(stored)) == description
    for shape in ((5, 9, 11), (8, 8, 8)):
        image = draw_image(2, 1, *shape[-config.dims :], dtype=torch.float32)
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            expected = network(image)[0].sigmoid().numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-4


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".savedmodel"])
def test_a_network_for_adaptation_is_not_written_for_others(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = NetworkConfig(**{**SETTINGS, "kind": "unet3d", "in_channels": 4})  # type: ignore[arg-type]
    network = build_shaken(config, torch.float32)
    save_model(tmp_path / "one.consilium", describe(config), dict(network.state_dict()))
    out = tmp_path / f"two{ending}"
    assert run_verb(build_command(), ["convert", str(tmp_path / "one.consilium"), str(out)]) == 2
    assert "adapt --model" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_model_goes_round_by_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = NetworkConfig(**{**SETTINGS, "kind": "unet3d"})  # type: ignore[arg-type]
    network = build_shaken(replace(config, heads=1), torch.float32)
    weights = dict(network.state_dict())
    digest = save_model(tmp_path / "one.consilium", describe(replace(config, heads=1)), weights)
    arguments = ["convert", str(tmp_path / "one.consilium"), str(tmp_path / "two.consilium")]
    assert run_verb(build_command(), arguments) == 0
    assert load_model(tmp_path / "two.consilium").digest == digest
    arguments[-1] = str(tmp_path / "two.pickle")
    assert run_verb(build_command(), arguments) == 2
    assert ".onnx" in capsys.readouterr().err
