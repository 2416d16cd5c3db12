"""A trained network as an ONNX graph, written from its canonical parameters; for images of any size."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consilium.errors import ConfigurationError
from consilium.inference.model import ModelDescription
from consilium.networks.config import NetworkConfig, Step
from consilium.types import Array, FloatArray

OPSET = 17
INPUT, OUTPUT = "image", "probabilities"
METADATA = "consilium"
SLOPE, EPSILON = 0.01, 1e-5
INSTALL = "pip install 'consilium[onnx]'"


def build_onnx(description: ModelDescription, weights: Mapping[str, Array]) -> bytes:
    """The bytes of an ONNX model.

    It takes ``image`` (B, C, Z, Y, X) float32, windowed as the description's preprocessing says, and gives
    ``probabilities`` (B, S, Z, Y, X). The description is its metadata entry ``consilium``. The rounding of an
    iunet's stream is left out: probabilities differ in the fifth digit.

    Raises:
        ConfigurationError: The package onnx is missing; says the command that installs it.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ConfigurationError(
            f"convert: ONNX files need the package onnx; it is not installed. Install it with: {INSTALL}"
        ) from error
    config = description.network
    graph = _Graph(weights)
    flat, image = config.dims == 2, INPUT
    if flat:
        image = graph.add("Unsqueeze", image, graph.keep(np.array([2])))
    logits = _unet3d(graph, config, image) if config.kind == "unet3d" else _iunet(graph, config, image)
    if flat:
        logits = graph.add("Squeeze", logits, graph.keep(np.array([2])))
    graph.nodes.append(helper.make_node("Sigmoid", [logits], [OUTPUT]))
    axes = ["batch", "{}", "y", "x"] if flat else ["batch", "{}", "z", "y", "x"]

    def info(name: str, channels: int) -> Any:
        shape = [channels if axis == "{}" else axis for axis in axes]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = helper.make_graph(
        [
            node if not isinstance(node, tuple) else helper.make_node(*node[:3], **node[3])
            for node in graph.nodes
        ],
        "consilium",
        [info(INPUT, config.in_channels)],
        [info(OUTPUT, config.out_channels)],
        [onnx.numpy_helper.from_array(value, name) for name, value in graph.kept.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(model, {METADATA: json.dumps(description.to_json(), sort_keys=True)})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


class _Graph:
    """Nodes in order, and the arrays they read."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.nodes: list[Any] = []
        self.kept: dict[str, Array] = {}
        self._weights = {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def weight(self, name: str) -> FloatArray:
        return self._weights[name]

    def keep(self, value: Array) -> str:
        name = f"value_{len(self.kept)}"
        kind = np.float32 if value.dtype.kind == "f" else np.int64
        self.kept[name] = np.ascontiguousarray(value, dtype=kind)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append((kind, list(inputs), [name], attributes))
        return name

    def convolve(
        self,
        image: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
        *,
        stride: Sequence[int] = (1, 1, 1),
    ) -> str:
        pads = [
            0 if step > 1 and step == k else k // 2 for k, step in zip(weight.shape[2:], stride, strict=True)
        ]
        inputs = [image, self.keep(weight), *([] if bias is None else [self.keep(bias)])]
        return self.add(
            "Conv", *inputs, kernel_shape=list(weight.shape[2:]), strides=list(stride), pads=[*pads, *pads]
        )

    def spread(self, image: str, weight: FloatArray, bias: FloatArray | None, stride: Sequence[int]) -> str:
        """A transposed convolution (in, out, z, y, x) whose kernel is its stride."""
        inputs = [image, self.keep(weight), *([] if bias is None else [self.keep(bias)])]
        return self.add("ConvTranspose", *inputs, kernel_shape=list(stride), strides=list(stride))

    def norm(self, image: str, weight: FloatArray, bias: FloatArray) -> str:
        return self.add("InstanceNormalization", image, self.keep(weight), self.keep(bias), epsilon=EPSILON)

    def activate(self, image: str) -> str:
        return self.add("LeakyRelu", image, alpha=SLOPE)

    def sizes(self, image: str) -> str:
        """The sizes (Z, Y, X) of an image."""
        return self.add("Shape", image, start=2)

    def crop(self, image: str, sizes: str) -> str:
        zeros, axes = self.keep(np.zeros(3, int)), self.keep(np.array([2, 3, 4]))
        return self.add("Slice", image, zeros, sizes, axes)

    def channels(self, image: str, start: int, stop: int) -> str:
        start_, stop_, axis = (self.keep(np.array([number])) for number in (start, stop, 1))
        return self.add("Slice", image, start_, stop_, axis)

    def pad_to_multiple(self, image: str, stride: Sequence[int]) -> str:
        """Repeat the last voxel along each axis until its size is a multiple of ``stride``."""
        step = self.keep(np.array(stride))
        rest = self.add("Mod", self.add("Sub", step, self.add("Mod", self.sizes(image), step)), step)
        pads = self.add("Concat", self.keep(np.zeros(7, int)), rest, axis=0)
        return self.add("Pad", image, pads, mode="edge")


def _three(step: Step) -> tuple[int, ...]:
    return step if len(step) == 3 else (1, *step)


def _unet3d(graph: _Graph, config: NetworkConfig, image: str) -> str:
    def stage(name: str, image: str, stride: Sequence[int]) -> str:
        for place in range(config.blocks[int(name.rpartition(".")[2])]):
            weight, bias = (graph.weight(f"{name}.{place}.{part}") for part in ("weight", "bias"))
            step = (1, 1, 1) if place else stride
            if config.norm == "instance":
                image = graph.convolve(image, weight, stride=step)
                image = graph.norm(image, graph.weight(f"{name}.{place}.norm_weight"), bias)
            else:
                image = graph.convolve(image, weight, bias, stride=step)
            image = graph.activate(image)
        return image

    skips: list[str] = []
    for scale in range(config.scales):
        image = stage(f"encoder.{scale}", image, _three(config.resampling[scale - 1]) if scale else (1, 1, 1))
        skips.append(image)
    image = skips.pop()
    for scale in reversed(range(config.scales - 1)):
        weight, bias = (graph.weight(f"upsampling.{scale}.{part}") for part in ("weight", "bias"))
        risen = graph.spread(image, weight.swapaxes(0, 1), bias, weight.shape[2:])
        skip = skips.pop()
        joined = graph.add("Concat", graph.crop(risen, graph.sizes(skip)), skip, axis=1)
        image = stage(f"decoder.{scale}", joined, (1, 1, 1))
    return graph.convolve(image, graph.weight("heads.0.weight"), graph.weight("heads.0.bias"))


def _iunet(graph: _Graph, config: NetworkConfig, image: str) -> str:
    sizes, block = graph.sizes(image), (1, 1, 1)
    image = graph.pad_to_multiple(image, _three(config.total_stride))
    if config.stem == "squeeze":
        block = _three(config.stem_stride)  # type: ignore[assignment]
        image = graph.convolve(image, _to_channels(config.in_channels, block), stride=block)
    weights, biases = (np.split(graph.weight(f"stem.{part}"), 2) for part in ("weight", "bias"))
    halves = [graph.convolve(image, w, b) for w, b in zip(weights, biases, strict=True)]
    skips: list[list[str]] = []
    last = config.scales - 1
    for scale in range(last):
        halves = _couple(graph, config, halves, f"encoder.{scale}")
        kept, weight, stride = _resampling(graph, config, scale)
        middle = config.channels[scale] // 2
        skips.append([graph.channels(half, kept, middle) for half in halves] if kept < middle else [])
        halves = [graph.convolve(graph.channels(half, 0, kept), weight, stride=stride) for half in halves]
    halves = _couple(graph, config, halves, f"encoder.{last}")
    for scale in reversed(range(last)):
        _, weight, stride = _resampling(graph, config, scale)
        risen = [graph.spread(half, weight, None, stride) for half in halves]
        skip = skips.pop()
        halves = (
            [graph.add("Concat", a, b, axis=1) for a, b in zip(risen, skip, strict=True)] if skip else risen
        )
        halves = _couple(graph, config, halves, f"decoder.{scale}")
    joined = graph.add("Concat", *halves, axis=1)
    head = graph.weight("heads.0.weight")
    logits = graph.convolve(joined, head[:, :, None, None, None], graph.weight("heads.0.bias"))
    if config.stem == "squeeze":
        logits = graph.spread(logits, _to_channels(config.out_channels, block), None, block)
    return graph.crop(logits, sizes)


def _couple(graph: _Graph, config: NetworkConfig, halves: Sequence[str], stage: str) -> list[str]:
    first, second = halves
    for place in range(config.blocks[int(stage.rpartition(".")[2])]):
        names = {part: f"trunk.{stage}.{place}.{part}" for part in _BRANCH}
        weight, bias = graph.weight(names["first_weight"]), graph.weight(names["first_bias"])
        if config.norm == "instance":
            hidden = graph.norm(graph.convolve(second, weight), graph.weight(names["norm_weight"]), bias)
        else:
            hidden = graph.convolve(second, weight, bias)
        value = graph.convolve(
            graph.activate(hidden), graph.weight(names["second_weight"]), graph.weight(names["second_bias"])
        )
        first, second = second, graph.add("Add", first, value)
    return [first, second]


_BRANCH = ("first_weight", "first_bias", "norm_weight", "second_weight", "second_bias")


def _resampling(graph: _Graph, config: NetworkConfig, scale: int) -> tuple[int, FloatArray, tuple[int, ...]]:
    """Channels of a half that descend, and the orthogonal step as a convolution (r * k, k, z, y, x)."""
    stride = _three(config.resampling[scale])
    rank = math.prod(stride)
    kept = config.channels[scale + 1] // (2 * rank)
    matrix = compute_orthogonal(graph.weight(f"trunk.resampling.{scale}.weight"), stride)
    weight = np.einsum("rp,cd->rcdp", matrix, np.eye(kept)).reshape(rank * kept, kept, *stride)
    return kept, weight.astype(np.float32), stride


def compute_orthogonal(weight: FloatArray, stride: Sequence[int]) -> FloatArray:
    """The matrix of `consilium.networks.resampling.OrthogonalMatrix`, in float64."""
    haar: FloatArray = np.ones((1, 1))
    for step in stride:
        haar = np.kron(haar, np.array([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5 if step == 2 else np.ones((1, 1)))
    skew = weight.astype(np.float64) - weight.T.astype(np.float64)
    identity = np.eye(len(skew))
    return np.asarray(haar @ np.linalg.solve(identity + skew, identity - skew))


def _to_channels(channels: int, block: Sequence[int]) -> FloatArray:
    """Voxels to channels ``c * r + place`` as a convolution (c * r, c, z, y, x)."""
    rank = math.prod(block)
    weight = np.einsum("cd,rp->crdp", np.eye(channels), np.eye(rank))
    return np.asarray(weight.reshape(channels * rank, channels, *block), dtype=np.float32)
