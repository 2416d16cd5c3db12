"""The residual branch of a coupling: its value, and its gradients by hand, so that few maps live at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.networks.blocks import EPSILON, SLOPE, Triple, draw_channel_mask, instance_norm, run_function
from consilium.networks.convolution import convolve, convolve_backward
from consilium.networks.lifting import GRID

Parameters: TypeAlias = tuple[Tensor, ...]
"""(first weight, norm weight, first bias, second weight, second bias); the norm weight only with a norm."""


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """What a branch does beside its parameters; `seed` None means no dropout in this pass."""

    normed: bool = True
    bf16: bool = False
    fixed_point: bool = True
    dropout: float = 0.0
    seed: int | None = None

    def on_grid(self, dtype: torch.dtype) -> bool:
        """Whether values are rounded to the grid for a stream of this dtype."""
        return self.fixed_point and dtype == torch.float32


class RoundToInteger(torch.autograd.Function):
    """Rounding whose gradient is the identity."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _working(stream: Tensor, plan: BranchPlan) -> torch.dtype:
    return torch.bfloat16 if plan.bf16 else stream.dtype


def _hidden(value: Tensor, parameters: Parameters, plan: BranchPlan) -> Tensor:
    """First convolution; with its bias only where no norm would take it out again."""
    weight = parameters[0].to(value.dtype)
    return convolve(value, weight, None if plan.normed else parameters[1].to(value.dtype))


def branch_steps(stream: Tensor, parameters: Parameters, plan: BranchPlan) -> Tensor:
    """The branch's value before rounding, times GRID on the grid, in the working dtype; differentiable."""
    hidden = _hidden(stream.to(_working(stream, plan)), parameters, plan)
    return _steps(hidden, parameters, plan, stream.dtype)


def branch_to_keep(stream: Tensor, parameters: Parameters, plan: BranchPlan) -> tuple[Tensor, Tensor]:
    """The map before the norm, which `undo_and_differentiate` would compute again, and `branch_steps`."""
    assert plan.normed, "without a norm the activation overwrites the map"
    hidden = _hidden(stream.to(_working(stream, plan)), parameters, plan)
    return hidden, _steps(hidden, parameters, plan, stream.dtype)


def _steps(hidden: Tensor, parameters: Parameters, plan: BranchPlan, dtype: torch.dtype) -> Tensor:
    """From the first convolution to the second; overwrites ``hidden`` where there is no norm."""
    if plan.normed:
        hidden = instance_norm(hidden, parameters[1], parameters[2])
    hidden = functional.leaky_relu_(hidden, SLOPE)
    if plan.seed is not None:
        hidden = hidden * draw_channel_mask(hidden, plan.dropout, plan.seed)
    return _second(hidden, parameters, plan, dtype)


def _second(hidden: Tensor, parameters: Parameters, plan: BranchPlan, dtype: torch.dtype) -> Tensor:
    scale = GRID if plan.on_grid(dtype) else 1.0
    weight, bias = parameters[-2] * scale, parameters[-1] * scale
    return convolve(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))


def branch_value(stream: Tensor, parameters: Parameters, plan: BranchPlan) -> Tensor:
    """The residual that a coupling adds, in the stream's dtype; differentiable (the plain path)."""
    steps = branch_steps(stream, parameters, plan).to(stream.dtype)
    if plan.on_grid(stream.dtype):
        rounded: Tensor = run_function(RoundToInteger, steps)
        return rounded * (1.0 / GRID)
    return steps


_SLAB = 2**17
"""Numbers converted and added at once: they stay in the cache and out of the memory peak."""


def _slabs(image: Tensor) -> Iterator[slice]:
    step = max(1, _SLAB * image.shape[2] // max(image.numel(), 1))
    for start in range(0, image.shape[2], step):
        yield slice(start, start + step)


def add_steps_(stream: Tensor, steps: Tensor, plan: BranchPlan, *, sign: float) -> None:
    """``stream += sign * value`` in place, where ``steps`` are `branch_steps` and may be overwritten."""
    for slab in _slabs(stream):
        part = steps[:, :, slab].to(stream.dtype)
        if plan.on_grid(stream.dtype):
            stream[:, :, slab].add_(part.round_(), alpha=sign / GRID)
        else:
            stream[:, :, slab].add_(part, alpha=sign)


def accumulate_(total: Tensor, part: Tensor) -> None:
    """``total += part`` where ``part`` may be of a narrower dtype (slower to add than to convert)."""
    if part.dtype == total.dtype:
        total.add_(part)
        return
    for slab in _slabs(total):
        total[:, :, slab].add_(part[:, :, slab].to(total.dtype))


def undo_and_differentiate(
    source: Tensor,
    target: Tensor | None,
    grad: Tensor,
    parameters: Parameters,
    plan: BranchPlan,
    *,
    kept: list[Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Take a branch back out of the stream and differentiate it, without autograd.

    Args:
        source: The half (B, C/2, Z, Y, X) that the branch reads.
        target: The half that it was added to; the branch's value is subtracted in place. None where that is
            done, or nobody needs it any more.
        grad: Gradient by the target as it was behind the coupling.
        parameters: The branch's parameters.
        plan: The same as in the forward pass.
        kept: The map of `branch_to_keep`, taken out of the list so that it is freed in time.

    Returns:
        The gradient by ``source`` through the branch, in the working dtype, and by each parameter.
    """
    dtype = _working(source, plan)
    hidden = kept.pop() if kept else _hidden(source.to(dtype), parameters, plan)
    mean = deviation = hidden
    active = hidden
    if plan.normed:
        active, mean, deviation = _norm(hidden, parameters[1], parameters[2])
    functional.leaky_relu_(active, SLOPE)
    mask = None if plan.seed is None else draw_channel_mask(active, plan.dropout, plan.seed)
    masked = active if mask is None else active * mask
    if target is not None:
        add_steps_(target, _second(masked, parameters, plan, source.dtype), plan, sign=-1.0)

    grad_bias = grad.sum(dim=(0, 2, 3, 4))
    weight = parameters[-2].to(dtype)
    flow, grad_second = convolve_backward(grad.to(dtype), masked, weight)
    assert flow is not None
    del masked
    if mask is not None:
        flow.mul_(mask)
    torch.ops.aten.leaky_relu_backward.grad_input(flow, active, SLOPE, True, grad_input=flow)
    del active
    if plan.normed:
        flow, grad_norm, grad_shift = _norm_backward(flow, hidden, parameters[1], mean, deviation)
        middle = [grad_norm, grad_shift]
    else:
        middle = [flow.to(grad.dtype).sum(dim=(0, 2, 3, 4))]
    del hidden, mean, deviation
    # The source is converted a second time: cheaper than to keep the copy across the peak.
    flow, grad_first = convolve_backward(flow, source.to(dtype), parameters[0].to(dtype))
    assert flow is not None
    gradients = (grad_first, *middle, grad_second, grad_bias)
    return flow, tuple(g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True))


def _norm(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`instance_norm` with the statistics (B, C) that its gradient needs."""
    parts = [
        torch.native_batch_norm(one, weight, bias, None, None, True, 0.0, EPSILON)
        for one in torch.split(hidden, 1)
    ]
    if len(parts) == 1:
        return parts[0][0], parts[0][1][None], parts[0][2][None]
    normed = torch.cat([p[0] for p in parts])
    return normed, torch.stack([p[1] for p in parts]), torch.stack([p[2] for p in parts])


def _norm_backward(
    flow: Tensor, hidden: Tensor, weight: Tensor, mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    parts = [
        torch.ops.aten.native_batch_norm_backward(
            flow[b : b + 1],
            hidden[b : b + 1],
            weight,
            None,
            None,
            mean[b],
            deviation[b],
            True,
            EPSILON,
            [True] * 3,
        )
        for b in range(len(hidden))
    ]
    if len(parts) == 1:
        grad, by_weight, by_bias = parts[0]
        return grad, by_weight, by_bias
    return torch.cat([p[0] for p in parts]), sum(p[1] for p in parts), sum(p[2] for p in parts)


class Branch(nn.Module):
    """Holds a branch's parameters: convolution, instance norm, leaky ReLU, dropout, convolution."""

    def __init__(self, channels: int, *, kernel: Triple, normed: bool, gain: float) -> None:
        super().__init__()
        self.first_weight = nn.Parameter(torch.empty(channels, channels, *kernel))
        self.norm_weight = nn.Parameter(torch.ones(channels)) if normed else None
        self.first_bias = nn.Parameter(torch.zeros(channels))
        self.second_weight = nn.Parameter(torch.empty(channels, channels, *kernel))
        self.second_bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.first_weight, a=SLOPE)
        nn.init.kaiming_normal_(self.second_weight, a=SLOPE)
        with torch.no_grad():
            self.second_weight.mul_(gain)

    def tensors(self) -> Parameters:
        """The parameters in the order that `branch_steps` takes."""
        middle = [self.first_bias] if self.norm_weight is None else [self.norm_weight, self.first_bias]
        return (self.first_weight, *middle, self.second_weight, self.second_bias)
