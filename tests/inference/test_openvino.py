"""OpenVINO contours as torch does and is chosen where it is faster; its absence is explained."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cli.console import run_verb
from consilium.cli.verbs import build_command
from consilium.errors import ConfigurationError
from consilium.inference import openvino as engine
from consilium.inference.model import Model, save_model
from consilium.inference.sliding_window import predict_windows
from consilium.inference.whole_volume import predict_whole
from consilium.metrics.overlap import dice
from consilium.networks.build import NetworkConfig, build_network
from tests.inference.models import small_model

needs_openvino = pytest.mark.skipif(not engine.is_installed(), reason=f"needs OpenVINO: {engine.INSTALL}")


def make_model(kind: str) -> Model:
    """A small model of a kind whose logits are on both sides of zero."""
    model = small_model()
    if kind == "unet3d":
        return model
    config = NetworkConfig(kind="iunet", in_channels=2, out_channels=2, channels=(16, 16, 32))
    network = build_network(config, seed=1).eval()
    with torch.no_grad():
        for head in network.heads:  # type: ignore[union-attr]
            head.weight.mul_(30.0)
    description = dataclasses.replace(model.description, network=config)
    return Model(description=description, network=network, device=torch.device("cpu"))


def draw_image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-200, 300, (18, 23, 21), dtype=np.int16)


@needs_openvino
@pytest.mark.parametrize("kind", [pytest.param("iunet", marks=pytest.mark.slow), "unet3d"])
def test_contours_are_the_same_as_by_torch(kind: str, rng: np.random.Generator) -> None:
    model, image = make_model(kind), draw_image(rng)
    other = engine.with_openvino(model)
    window = (16, 16, 16)
    whole = predict_whole(model, image), predict_whole(other, image)
    parts = predict_windows(model, image, window), predict_windows(other, image, window)
    for ours, theirs in (whole, parts):
        assert np.abs(ours - theirs).max() < 1e-3
        for one, two in zip(ours >= 0.5, theirs >= 0.5, strict=True):
            assert 0.02 < one.mean() < 0.98
            assert dice(one, two) >= 0.999


def test_a_network_for_adaptation_stays_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it is asked to contour alone; before that it must not be timed as if it could."""
    monkeypatch.setattr(engine, "is_installed", lambda: True)
    model = small_model()
    config = dataclasses.replace(model.description.network, in_channels=6)
    description = dataclasses.replace(model.description, network=config)
    adapting = Model(description=description, network=build_network(config), device=torch.device("cpu"))
    assert engine.choose_engine(adapting, memory=tmp_path) is adapting
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_the_answer_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("unet3d")
    times = iter([1.0, 0.5])
    monkeypatch.setattr(engine, "_time", lambda _: next(times))
    chosen = engine.choose_engine(model, memory=tmp_path)
    assert isinstance(chosen.network, engine.OpenVinoNetwork)
    (record,) = tmp_path.glob("*.json")
    assert json.loads(record.read_text())["seconds"] == {"torch": 1.0, "openvino": 0.5}
    assert isinstance(engine.choose_engine(model, memory=tmp_path).network, engine.OpenVinoNetwork)
    times = iter([0.5, 0.49])
    other = tmp_path / "other machine"
    assert engine.choose_engine(model, memory=other) is model
    assert engine.choose_engine(model, memory=other) is model


@needs_openvino
def test_the_package_cannot_report_its_use() -> None:
    engine.with_openvino(make_model("unet3d"))
    assert sys.modules["openvino_telemetry"] is None


@needs_openvino
def test_a_saved_model_carries_its_description(tmp_path: Path) -> None:
    import openvino

    model = make_model("unet3d")
    engine.save_openvino(model, tmp_path / "model.xml")
    read = openvino.Core().read_model(tmp_path / "model.xml")
    text = str(read.get_rt_info(["consilium", "description"]).value)
    assert json.loads(text) == model.description.to_json()


@needs_openvino
def test_convert_writes_what_openvino_runs_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    import openvino

    model = make_model("unet3d")
    save_model(tmp_path / "model.consilium", model.description, model.network.state_dict())
    out = tmp_path / "model.xml"
    assert run_verb(build_command(), ["convert", str(tmp_path / "model.consilium"), str(out)]) == 0
    image = rng.normal(size=(1, 2, 16, 24, 16)).astype(np.float32)
    (found,) = openvino.Core().compile_model(out, "CPU")(image).values()
    with torch.no_grad():
        expected = model.network(torch.from_numpy(image))[0].numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "is_installed", lambda: False)
    model = make_model("unet3d")
    assert engine.choose_engine(model, "auto") is model
    with pytest.raises(ConfigurationError, match=r"pip install 'consilium\[openvino\]'"):
        engine.choose_engine(model, "openvino")
    with pytest.raises(ConfigurationError, match="must be one of"):
        engine.choose_engine(model, "onnx")
