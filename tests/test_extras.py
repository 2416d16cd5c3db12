"""Without an optional extra, whatever needs it says the command that installs it."""

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from consilium.cli.console import run_verb
from consilium.cli.verbs import build_command
from consilium.inference.model import save_model
from consilium.networks.config import NetworkConfig
from tests.inference.test_onnx_graph import describe
from tests.networks.small import build_shaken


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = NetworkConfig(kind="unet3d", channels=(4, 8), out_channels=2)
    save_model(tmp_path / "model.consilium", describe(config), build_shaken(config).float().state_dict())
    return tmp_path / "model.consilium"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, load = importlib.util.find_spec, builtins.__import__

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name.split(".")[0] in {"openvino", "tensorflow"} else found(name, package)

    def import_(name: str, *rest: Any, **others: Any) -> Any:
        if name.split(".")[0] in {"onnx", "tensorflow"}:
            raise ImportError(name)
        return load(name, *rest, **others)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(builtins, "__import__", import_)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("ending", "extra"), [(".savedmodel", "tensorflow"), (".onnx", "onnx"), (".xml", "openvino")]
)
def test_convert_says_what_to_install(
    ending: str, extra: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(build_command(), ["convert", str(model), str(tmp_path / f"out{ending}")]) == 2
    assert f"pip install 'consilium[{extra}]'" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_installed")
def test_train_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(tmp_path), str(tmp_path / "run"), "--framework", "tensorflow"]
    assert run_verb(build_command(), arguments) == 2
    assert "pip install 'consilium[tensorflow]'" in capsys.readouterr().err
