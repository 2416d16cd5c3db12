"""A model run by OpenVINO on the processor where it is faster than torch; extra ``consilium[openvino]``."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consilium.cases.files import write_json
from consilium.errors import ConfigurationError
from consilium.inference.device import has_fast_bf16
from consilium.inference.model import Model, canonical_json
from consilium.networks.blocks import crop, pad_to_multiple
from consilium.networks.plain_operators import (
    build_plain_operators,
    example_sizes,
    required_multiple,
)

INSTALL = "pip install 'consilium[openvino]'"

ENGINES = ("auto", "torch", "openvino")

PROBE_SIZE = 64
"""Edge in voxels of the image on which both engines are timed."""

WORTH = 0.95
"""OpenVINO is taken where it needs less than this share of torch's time."""


def is_installed() -> bool:
    """Whether the package is at hand."""
    return importlib.util.find_spec("openvino") is not None


def convert_network(network: nn.Module, channels: int) -> Any:
    """The network as an ``openvino.Model``: (B, C, Z, Y, X) float32 -> finest logits (B, S, Z, Y, X).

    Sizes stay free; they must be multiples of `required_multiple`.

    Args:
        network: From `consilium.networks.build.build_network`, of three dimensions.
        channels: Of the image.

    Raises:
        ConfigurationError: The package is not installed, or the network cannot be exported.
    """
    openvino = _load()
    plain = build_plain_operators(network)
    example = torch.zeros(1, channels, *example_sizes(network))
    with torch.no_grad(), warnings.catch_warnings():
        # The package traces by torch.jit, which torch calls deprecated; sizes stay free that way.
        warnings.simplefilter("ignore")
        return openvino.convert_model(plain, example_input=example)


def save_openvino(model: Model, path: Path) -> None:
    """Write ``path`` (``.xml``) and the weights beside it (``.bin``), with the model's description inside.

    Raises:
        ConfigurationError: See `convert_network`.
    """
    converted = convert_network(model.network, model.preprocessing.channels)
    converted.set_rt_info(canonical_json(model.description.to_json()), ["consilium", "description"])
    converted.set_rt_info(model.digest, ["consilium", "digest"])
    _load().save_model(converted, path, compress_to_fp16=False)


class OpenVinoNetwork(nn.Module):
    """The network of a model behind torch's own call: ``net(image)`` returns the finest logits in a list."""

    def __init__(self, network: nn.Module, channels: int, *, bf16: bool) -> None:
        super().__init__()
        self._converted = convert_network(network, channels)
        self._multiple = required_multiple(network)
        self._precision = "bf16" if bf16 else "f32"
        self._shape: torch.Size | None = None
        self._request: Any = None

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits (B, S, Z, Y, X) of an image of any sizes; a new shape is compiled first, in a second."""
        sizes, padded = image.shape[2:], pad_to_multiple(image, self._multiple)
        if padded.shape != self._shape:
            self._compile(padded.shape)
        result = self._request.infer({0: padded.contiguous().numpy()}, share_inputs=True)
        return [crop(torch.from_numpy(result[0].copy()), sizes)]

    def _compile(self, shape: torch.Size) -> None:
        self._request = None
        self._converted.reshape(list(shape))
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        compiled = _load().Core().compile_model(self._converted, "CPU", settings)
        self._request, self._shape = compiled.create_infer_request(), shape


def choose_engine(model: Model, engine: str = "auto", *, memory: Path | None = None) -> Model:
    """The model with the engine that is asked for, or by ``auto`` the faster one.

    Where OpenVINO is installed, ``auto`` times both once per model and machine, and remembers the answer.

    Args:
        model: On a GPU, and for adaptation, torch is the engine.
        engine: One of `ENGINES`.
        memory: Where answers are kept; None: the user's cache folder.

    Raises:
        ConfigurationError: No such engine; or ``openvino`` without its package, or on a GPU.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"--engine: must be one of {ENGINES}; got {engine!r}.")
    on_processor = model.device.type == "cpu"
    if engine == "openvino":
        _load()
        if not on_processor:
            raise ConfigurationError("--engine: openvino runs on the processor; the model is on a GPU.")
        return with_openvino(model)
    if engine == "torch" or not on_processor or model.description.takes_prior or not is_installed():
        return model
    path = (memory or _cache_folder()) / f"engine-{_fingerprint(model)}.json"
    known = _read(path)
    if known is not None:
        return with_openvino(model) if known else model
    other = with_openvino(model)
    seconds = {name: _time(m) for name, m in (("torch", model), ("openvino", other))}
    better = seconds["openvino"] < WORTH * seconds["torch"]
    _remember(path, {"openvino": better, "seconds": seconds})
    return other if better else model


def with_openvino(model: Model) -> Model:
    """The same model, run by OpenVINO.

    Raises:
        ConfigurationError: See `convert_network`.
    """
    bf16 = model.description.network.bf16 and has_fast_bf16(model.device)
    network = OpenVinoNetwork(model.network, model.preprocessing.channels, bf16=bf16)
    return replace(model, network=network.eval())


def _load() -> Any:
    """The package, kept from reporting its use to its makers."""
    if not is_installed():
        raise ConfigurationError(
            f"openvino: the package must be installed; it is not. Install it with: {INSTALL}"
        )
    # Its converter would send statistics; hidden, this module is replaced by the package's own silent stub.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def _time(model: Model) -> float:
    """Seconds of the faster of two passes over a small image, behind one that warms up."""
    image = torch.zeros(1, model.preprocessing.channels, *([PROBE_SIZE] * 3))

    def once(clock: Callable[[], float] = time.perf_counter) -> float:
        started = clock()
        model.network(image)
        return clock() - started

    with torch.inference_mode():
        once()
        return min(once(), once())


def _fingerprint(model: Model) -> str:
    """The model's network (its weights do not change its speed), the machine, the threads, the versions."""
    parts = (
        canonical_json(model.description.network.to_dict()),
        platform.node(),
        platform.processor() or platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        str(os.cpu_count()),
        torch.__version__,
        importlib.metadata.version("openvino"),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "consilium"


def _read(path: Path) -> bool | None:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["openvino"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError:
        # A read-only home: it is measured again next time.
        return
