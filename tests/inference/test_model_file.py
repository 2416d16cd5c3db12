"""A model in one file: nothing is lost, nothing else is let in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from consilium.errors import CheckpointError, ConfigurationError
from consilium.inference.model import (
    ModelDescription,
    build_model,
    load_model,
    read_model_file,
    save_model,
)
from tests.inference.models import small_model


def written(tmp_path: Path) -> Path:
    model = small_model()
    path = tmp_path / "model.consilium"
    save_model(path, model.description, model.network.state_dict())
    return path


def rewrite(path: Path, **changes: object) -> None:
    """Change the header behind the digest's back."""
    with safe_open(path, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["consilium"])
    save_file(tensors, path, {"consilium": json.dumps({**header, **changes})})


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = small_model()
    loaded = load_model(written(tmp_path), device=torch.device("cpu"))
    assert loaded.description == model.description
    assert len(loaded.digest) == 64
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])


def test_the_same_model_has_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path).read_bytes()
    assert written(tmp_path).read_bytes() == first


def test_any_changed_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="digest"):
        load_model(path)


def test_a_changed_description_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    description = small_model().description.to_json()
    rewrite(path, description=json.dumps({**description, "structures": ["Rectum", "Bladder"]}))
    with pytest.raises(CheckpointError, match="digest"):
        load_model(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    rewrite(path, version=2)
    with pytest.raises(CheckpointError, match="version 2"):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 64])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.consilium"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_model(tmp_path / "none.consilium")
    with pytest.raises(CheckpointError, match="run's folder"):
        load_model(tmp_path)


def test_weights_must_be_those_of_the_network(tmp_path: Path) -> None:
    description, weights, _ = read_model_file(written(tmp_path))
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match="missing"):
        build_model(description, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(CheckpointError, match="shape"):
        build_model(description, {**weights, name: torch.zeros(3)})


def test_a_description_that_cannot_be_is_refused() -> None:
    description = small_model().description
    with pytest.raises(ConfigurationError, match="one output per structure"):
        ModelDescription(
            structures=("Bladder",), preprocessing=description.preprocessing, network=description.network
        )
    with pytest.raises(CheckpointError):
        ModelDescription.from_json({"structures": ["Bladder"]})
