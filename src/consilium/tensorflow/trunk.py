"""The invertible trunk in TensorFlow: backwards it rebuilds the stream behind a barrier, storing nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from consilium.networks.config import NetworkConfig
from consilium.tensorflow.blocks import Dropout, Tensor, Triple, as_three, convolve, instance_norm, leaky_relu
from consilium.tensorflow.resampling import (
    GRID,
    compute_matrix,
    downsample,
    downsample_backward,
    resample,
    upsample,
    upsample_backward,
)

Halves: TypeAlias = tuple[Tensor, Tensor]


def run_trunk(
    config: NetworkConfig,
    tensors: Mapping[str, Tensor],
    halves: Halves,
    *,
    heads: int,
    dropout: Dropout | None = None,
) -> list[Tensor]:
    """Read-outs (B, Z, Y, X, O) of the ``heads`` finest decoder scales, finest first.

    Args:
        config: Of the network; `reversible` decides whether the backward pass rebuilds or remembers.
        tensors: The network's parameters by canonical name.
        halves: The state behind the stem, (B, Z, Y, X, channels[0] / 2) each; sizes fit all strides.
        heads: How many scales are read out.
        dropout: None outside training.
    """
    own = {name: value for name, value in tensors.items() if name.startswith("trunk.")}
    for scale, step in enumerate(config.resampling):
        name = _matrix_name(scale)
        own[name] = compute_matrix(own[name], as_three(step))
    for scale in range(heads):
        for part in ("weight", "bias"):
            own[f"heads.{scale}.{part}"] = tensors[f"heads.{scale}.{part}"]
    names = tuple(own)

    def walk_over(values: Sequence[Tensor]) -> "Walk":
        return Walk(config, dict(zip(names, values, strict=True)), heads=heads, dropout=dropout)

    if not config.reversible:
        return walk_over(tuple(own.values())).run(halves)[1]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def reversible(first: Tensor, second: Tensor, *values: Tensor) -> tuple[list[Tensor], Any]:
        state, outputs = walk_over(values).run((first, second))

        def gradient(*flows: Tensor) -> list[Tensor]:
            walk = walk_over(values)
            by_halves = walk.run_backward(state, flows)
            return [*by_halves, *(walk.gradients[name] for name in names)]

        return outputs, gradient

    return list(reversible(*halves, *own.values()))


def _matrix_name(scale: int) -> str:
    return f"trunk.resampling.{scale}.weight"


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _round(value: Tensor) -> tuple[Tensor, Any]:
    """Rounding whose gradient is the identity."""
    return tf.round(value), lambda flow: flow


class Walk:
    """A pass over the trunk; a backward pass collects gradients by name."""

    def __init__(
        self, config: NetworkConfig, tensors: Mapping[str, Tensor], *, heads: int, dropout: Dropout | None
    ) -> None:
        self.gradients: dict[str, Tensor] = {}
        self._config, self._tensors, self._heads, self._dropout = config, tensors, heads, dropout
        self._strides: tuple[Triple, ...] = tuple(as_three(step) for step in config.resampling)
        self._kept = tuple(
            config.channels[scale + 1] // (2 * stride[0] * stride[1] * stride[2])
            for scale, stride in enumerate(self._strides)
        )
        stages = [f"encoder.{s}" for s in range(config.scales)]
        stages += [f"decoder.{s}" for s in range(config.scales - 1)]
        blocks = [f"trunk.{stage}.{n}" for stage in stages for n in range(config.blocks[int(stage[8:])])]
        self._places = {name: place for place, name in enumerate(blocks)}

    def run(self, halves: Halves) -> tuple[Halves, list[Tensor]]:
        """Encoder and decoder: the last state, and the read-outs, finest first."""
        on_grid = self._on_grid(halves)
        if on_grid:
            halves = _both(halves, lambda half: _round(half * GRID) * (1.0 / GRID))
        skips: list[Halves] = []
        outputs: list[Tensor] = []
        last = self._config.scales - 1
        for scale in range(last):
            halves, kept = self._couple(halves, f"encoder.{scale}"), self._kept[scale]
            skips.append(_both(halves, lambda half, k=kept: half[..., k:]))
            halves = _both(halves, lambda half, s=scale, k=kept: self._resample(half[..., :k], s, up=False))
        halves = self._couple(halves, f"encoder.{last}")
        self._read_out(halves, last, outputs)
        for scale in reversed(range(last)):
            risen = _both(halves, lambda half, s=scale: self._resample(half, s, up=True))
            halves = _join(risen, skips.pop())
            halves = self._couple(halves, f"decoder.{scale}")
            self._read_out(halves, scale, outputs)
        return halves, outputs[::-1]

    def run_backward(self, halves: Halves, flows: Sequence[Tensor]) -> Halves:
        """Undo `run` and carry the gradients of its read-outs to the state at its start."""
        on_grid, last = self._on_grid(halves), self._config.scales - 1
        skips: list[tuple[Halves, Halves]] = []
        grads: Halves | None = None
        for scale in range(last):
            grads = self._read_out_backward(halves, grads, flows, scale)
            halves, grads = self._uncouple(halves, grads, f"decoder.{scale}")
            kept, stride = self._kept[scale], self._strides[scale]
            skips.append(
                (_both(halves, lambda h, k=kept: h[..., k:]), _both(grads, lambda g, k=kept: g[..., k:]))
            )
            matrix = self._tensors[_matrix_name(scale)]
            coarse = _both(
                halves, lambda h, k=kept, m=matrix, s=stride: downsample(h[..., :k], m, s, on_grid=on_grid)
            )
            pairs = [
                upsample_backward(g[..., :kept], h, matrix, stride)
                for g, h in zip(grads, coarse, strict=True)
            ]
            self._add_gradient(_matrix_name(scale), pairs[0][1] + pairs[1][1])
            halves, grads = coarse, (pairs[0][0], pairs[1][0])
        grads = self._read_out_backward(halves, grads, flows, last)
        halves, grads = self._uncouple(halves, grads, f"encoder.{last}")
        for scale in reversed(range(last)):
            matrix, stride = self._tensors[_matrix_name(scale)], self._strides[scale]
            fine = _both(halves, lambda h, m=matrix, s=stride: upsample(h, m, s, on_grid=on_grid))
            pairs = [downsample_backward(g, f, matrix, stride) for g, f in zip(grads, fine, strict=True)]
            self._add_gradient(_matrix_name(scale), pairs[0][1] + pairs[1][1])
            skip, skip_grads = skips.pop()
            halves, grads = _join(fine, skip), _join((pairs[0][0], pairs[1][0]), skip_grads)
            halves, grads = self._uncouple(halves, grads, f"encoder.{scale}")
        return grads

    def _couple(self, halves: Halves, stage: str) -> Halves:
        first, second = halves
        for branch in self._branches(stage):
            first, second = second, first + self._branch(branch, second)
        return first, second

    def _uncouple(self, halves: Halves, grads: Halves, stage: str) -> tuple[Halves, Halves]:
        """Undo `_couple` and carry the gradients across it.

        The barrier makes a coupling wait until everything of the one behind it is done. Without it
        TensorFlow rebuilds the whole stream at once, as nothing there depends on a gradient, and keeps every
        activation until the gradients come: right, and no memory is saved.
        """
        (source, target), (grad_source, grad_target) = halves, grads
        done: list[Tensor] = [grad_source, grad_target]
        for branch in reversed(self._branches(stage)):
            parameters = self._parameters(branch)
            with tf.control_dependencies(done):
                source, target = tf.identity(source), tf.identity(target)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([source, *parameters.values()])
                value = self._branch(branch, source)
            flow, *by_parameter = tape.gradient(value, [source, *parameters.values()], grad_target)
            self.gradients.update(zip(parameters, by_parameter, strict=True))
            before = target - value
            grad_source = grad_source + flow
            done = [before, grad_source, *by_parameter]
            source, target, grad_source, grad_target = before, source, grad_target, grad_source
        return (source, target), (grad_source, grad_target)

    def _branches(self, stage: str) -> list[str]:
        prefix = f"trunk.{stage}."
        return [name for name in self._places if name.startswith(prefix)]

    def _parameters(self, branch: str) -> dict[str, Tensor]:
        prefix = f"{branch}."
        return {name: value for name, value in self._tensors.items() if name.startswith(prefix)}

    def _branch(self, branch: str, source: Tensor) -> Tensor:
        """The residual that a coupling adds."""
        values, on_grid = self._tensors, self._on_grid((source, source))
        weight, bias = values[f"{branch}.first_weight"], values[f"{branch}.first_bias"]
        if self._config.norm == "instance":
            hidden = instance_norm(convolve(source, weight), values[f"{branch}.norm_weight"], bias)
        else:
            hidden = convolve(source, weight, bias)
        hidden = leaky_relu(hidden)
        if self._dropout is not None:
            hidden = self._dropout.silence(hidden, self._places[branch])
        weight, bias = values[f"{branch}.second_weight"], values[f"{branch}.second_bias"]
        if not on_grid:
            return convolve(hidden, weight, bias)
        return _round(convolve(hidden, weight * GRID, bias * GRID)) * (1.0 / GRID)

    def _on_grid(self, halves: Halves) -> bool:
        return bool(self._config.fixed_point and halves[0].dtype == tf.float32)

    def _resample(self, half: Tensor, scale: int, *, up: bool) -> Tensor:
        matrix, on_grid = self._tensors[_matrix_name(scale)], self._on_grid((half, half))
        if self._config.reversible:
            return (upsample if up else downsample)(half, matrix, self._strides[scale], on_grid=on_grid)
        return resample(half, matrix, self._strides[scale], up=up, on_grid=on_grid)

    def _read_out(self, halves: Halves, scale: int, outputs: list[Tensor]) -> None:
        if scale < self._heads:
            weight, bias = (self._tensors[f"heads.{scale}.{part}"] for part in ("weight", "bias"))
            first, second = tf.split(tf.transpose(weight), 2)
            outputs.append(tf.tensordot(halves[0], first, 1) + bias + tf.tensordot(halves[1], second, 1))

    def _read_out_backward(
        self, halves: Halves, grads: Halves | None, flows: Sequence[Tensor], scale: int
    ) -> Halves:
        """Add what flows back through a read-out; the stream's gradient starts at the finest."""
        if scale >= self._heads:
            return grads or (tf.zeros_like(halves[0]), tf.zeros_like(halves[1]))
        flow = flows[scale]
        weight = self._tensors[f"heads.{scale}.weight"]
        rows = tf.reshape(flow, (-1, flow.shape[-1]))
        by_weight = [
            tf.matmul(rows, tf.reshape(half, (-1, half.shape[-1])), transpose_a=True) for half in halves
        ]
        self.gradients[f"heads.{scale}.weight"] = tf.concat(by_weight, 1)
        self.gradients[f"heads.{scale}.bias"] = tf.reduce_sum(rows, 0)
        first, second = (tf.tensordot(flow, piece, 1) for piece in tf.split(weight, 2, axis=1))
        return (first, second) if grads is None else (grads[0] + first, grads[1] + second)

    def _add_gradient(self, name: str, value: Tensor) -> None:
        self.gradients[name] = self.gradients[name] + value if name in self.gradients else value


def _both(halves: Halves, change: Any) -> Halves:
    return change(halves[0]), change(halves[1])


def _join(risen: Halves, skip: Halves) -> Halves:
    return tf.concat([risen[0], skip[0]], -1), tf.concat([risen[1], skip[1]], -1)
