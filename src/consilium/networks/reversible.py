"""One autograd Function for a whole invertible trunk: backwards it rebuilds the stream, storing nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from consilium.errors import RunError
from consilium.networks.blocks import Triple
from consilium.networks.branch import (
    BranchPlan,
    accumulate_,
    add_steps_,
    branch_steps,
    branch_to_keep,
    undo_and_differentiate,
)
from consilium.networks.lifting import GRID
from consilium.networks.resampling import downsample, downsample_backward, upsample_backward, upsample_into

Halves: TypeAlias = tuple[Tensor, Tensor]
Couplings: TypeAlias = tuple[tuple[BranchPlan, slice], ...]
"""Per coupling its branch's plan and the place of its parameters in the flat list of tensors."""


@dataclass(frozen=True, kw_only=True)
class TrunkPlan:
    """Everything of a trunk's walk that is not a tensor.

    Args:
        strides: Step between scale s and s + 1.
        kept: Channels of each half that go down from scale s to s + 1, before their neighbours join them.
        encoder: Couplings per scale on the way down; the coarsest scale has its couplings here only.
        decoder: Couplings per scale on the way up, one entry less.
        matrices: Place of the resampling matrix between scales s and s + 1.
        heads: Places of a scale's head weight and bias, or None.
        features: Whether a scale's features themselves are wanted (where it has no head).
        on_grid: Whether the stream lives on multiples of 1 / GRID.
    """

    strides: tuple[Triple, ...]
    kept: tuple[int, ...]
    encoder: tuple[Couplings, ...]
    decoder: tuple[Couplings, ...]
    matrices: tuple[int, ...]
    heads: tuple[tuple[int, int] | None, ...]
    features: tuple[bool, ...]
    on_grid: bool

    @property
    def scales(self) -> int:
        """Number of resolutions."""
        return len(self.encoder)


def read_out(halves: Halves, weight: Tensor, bias: Tensor) -> Tensor:
    """A head's logits (B, O, Z, Y, X) from both halves, in channels-last layout."""
    first, second = (half.permute(0, 2, 3, 4, 1) for half in halves)
    middle = first.shape[-1]
    rows = torch.addmm(bias, first.reshape(-1, middle), weight[:, :middle].T)
    rows = torch.addmm(rows, second.reshape(-1, middle), weight[:, middle:].T)
    return rows.view(*first.shape[:4], -1).permute(0, 4, 1, 2, 3)


def _as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 4, 1).reshape(-1, image.shape[1])


@dataclass
class Walk:
    """A pass over the trunk that changes its two halves in place and collects gradients by place.

    ``kept`` holds, between `run` and `run_backward`, two maps of the last coupling's branch, the first that
    is undone: they are alive at the memory's peak anyway.
    """

    plan: TrunkPlan
    tensors: Sequence[Tensor]
    gradients: dict[int, Tensor] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def _parameters(self, place: slice) -> tuple[Tensor, ...]:
        return tuple(self.tensors[place])

    def _matrix(self, scale: int) -> tuple[Tensor, Triple]:
        return self.tensors[self.plan.matrices[scale]], self.plan.strides[scale]

    def _descending(self, halves: Halves, scale: int) -> Halves:
        kept = self.plan.kept[scale]
        return halves[0][:, :kept], halves[1][:, :kept]

    def couple(self, halves: Halves, couplings: Couplings, *, keep: bool = False) -> Halves:
        """Run couplings: add the branch of one half to the other, then swap their names.

        With ``keep`` the last one's branch is kept for the backward pass.
        """
        first, second = halves
        for number, (plan, place) in enumerate(couplings, start=1):
            parameters = self._parameters(place)
            if keep and number == len(couplings) and plan.normed:
                self.kept.extend(branch_to_keep(second, parameters, plan))
                add_steps_(first, self.kept[-1], plan, sign=1.0)
            else:
                add_steps_(first, branch_steps(second, parameters, plan), plan, sign=1.0)
            first, second = second, first
        return first, second

    def uncouple(self, halves: Halves, couplings: Couplings) -> Halves:
        """Undo `couple`."""
        first, second = halves
        for plan, place in reversed(couplings):
            first, second = second, first
            add_steps_(first, branch_steps(second, self._parameters(place), plan), plan, sign=-1.0)
        return first, second

    def uncouple_backward(
        self, halves: Halves, grads: Halves, couplings: Couplings, *, at_start: bool = False
    ) -> tuple[Halves, Halves]:
        """Undo `couple` and carry the gradients across it, in place.

        With ``at_start`` nothing comes before these couplings, and the half that the first of them changed
        is not restored.
        """
        (first, second), (grad_first, grad_second) = halves, grads
        for number, (plan, place) in reversed(tuple(enumerate(couplings))):
            first, second, grad_first, grad_second = second, first, grad_second, grad_first
            target = None if at_start and number == 0 else first
            if self.kept:
                add_steps_(first, self.kept.pop(), plan, sign=-1.0)
                target = None
            flow, by_parameter = undo_and_differentiate(
                second, target, grad_first, self._parameters(place), plan, kept=self.kept
            )
            accumulate_(grad_second, flow)
            del flow
            self.gradients.update(zip(range(place.start, place.stop), by_parameter, strict=True))
        return (first, second), (grad_first, grad_second)

    def go_down(self, halves: Halves, scale: int) -> Halves:
        """Copy the descending channels to the next coarser scale."""
        matrix, stride = self._matrix(scale)
        down = [
            downsample(h, matrix, stride, on_grid=self.plan.on_grid) for h in self._descending(halves, scale)
        ]
        return down[0], down[1]

    def go_up(self, halves: Halves, coarse: Halves, scale: int) -> None:
        """Write the coarser scale's halves into the descending channels; also undoes `go_down`."""
        matrix, stride = self._matrix(scale)
        for target, source in zip(self._descending(halves, scale), coarse, strict=True):
            upsample_into(target, source, matrix, stride, on_grid=self.plan.on_grid)

    def run(self, halves: Halves, outputs: list[Tensor | None], *, keep: bool = False) -> Halves:
        """Encoder and decoder; fills ``outputs`` per scale, and with ``keep`` ``self.kept``."""
        skips: list[Halves] = []
        last = self.plan.scales - 1
        for scale in range(last):
            halves = self.couple(halves, self.plan.encoder[scale])
            skips.append(halves)
            halves = self.go_down(halves, scale)
        halves = self.couple(halves, self.plan.encoder[last], keep=keep and not last)
        self._emit(halves, last, outputs)
        for scale in reversed(range(last)):
            coarse, halves = halves, skips.pop()
            self.go_up(halves, coarse, scale)
            del coarse
            halves = self.couple(halves, self.plan.decoder[scale], keep=keep and not scale)
            self._emit(halves, scale, outputs)
        return halves

    def invert(self, halves: Halves) -> Halves:
        """Undo `run`, in place."""
        skips: list[Halves] = []
        last = self.plan.scales - 1
        for scale in range(last):
            halves = self.uncouple(halves, self.plan.decoder[scale])
            skips.append(halves)
            halves = self.go_down(halves, scale)
        halves = self.uncouple(halves, self.plan.encoder[last])
        for scale in reversed(range(last)):
            coarse, halves = halves, skips.pop()
            self.go_up(halves, coarse, scale)
            halves = self.uncouple(halves, self.plan.encoder[scale])
        return halves

    def run_backward(self, halves: Halves, output_grads: Sequence[Tensor | None]) -> Halves:
        """Undo `run` and carry the gradients of its outputs to the stream at its start."""
        skips: list[tuple[Halves, Halves]] = []
        last = self.plan.scales - 1
        grads: Halves | None = None
        for scale in range(last):
            grads = self._emit_backward(halves, grads, output_grads[scale], scale)
            halves, grads = self.uncouple_backward(halves, grads, self.plan.decoder[scale])
            skips.append((halves, grads))
            halves, grads = self._go_up_backward(halves, grads, scale)
        grads = self._emit_backward(halves, grads, output_grads[last], last)
        halves, grads = self.uncouple_backward(halves, grads, self.plan.encoder[last], at_start=not last)
        for scale in reversed(range(last)):
            coarse, coarse_grads = halves, grads
            halves, grads = skips.pop()
            self.go_up(halves, coarse, scale)
            self._go_down_backward(halves, grads, coarse_grads, scale)
            del coarse, coarse_grads
            couplings = self.plan.encoder[scale]
            halves, grads = self.uncouple_backward(halves, grads, couplings, at_start=not scale)
        return grads

    def _emit(self, halves: Halves, scale: int, outputs: list[Tensor | None]) -> None:
        places = self.plan.heads[scale]
        if places is not None:
            outputs[scale] = read_out(halves, self.tensors[places[0]], self.tensors[places[1]])
        elif self.plan.features[scale]:
            outputs[scale] = torch.cat(halves, dim=1)

    def _emit_backward(self, halves: Halves, grads: Halves | None, out: Tensor | None, scale: int) -> Halves:
        """Add what flows back through a scale's output; the stream's gradient starts here at the finest."""
        places, middle = self.plan.heads[scale], halves[0].shape[1]
        if out is None:
            flows = None
        elif places is None:
            flows = (out[:, :middle], out[:, middle:])
        else:
            rows, weight = _as_rows(out), self.tensors[places[0]]
            self.gradients[places[0]] = torch.cat([rows.T @ _as_rows(half) for half in halves], dim=1)
            self.gradients[places[1]] = rows.sum(dim=0)
            last_layout = (halves[0].shape[0], *halves[0].shape[2:], middle)
            pieces = [rows @ piece for piece in (weight[:, :middle], weight[:, middle:])]
            flows = tuple(p.view(last_layout).permute(0, 4, 1, 2, 3) for p in pieces)  # type: ignore[assignment]
        if grads is None:
            if flows is None:
                return torch.zeros_like(halves[0]), torch.zeros_like(halves[1])
            kept = [f.contiguous(memory_format=torch.channels_last_3d) for f in flows]
            return (kept[0], kept[1]) if places is not None else (kept[0].clone(), kept[1].clone())
        for grad, flow in zip(grads, flows or (), strict=False):
            grad.add_(flow)
        return grads

    def _go_up_backward(self, halves: Halves, grads: Halves, scale: int) -> tuple[Halves, Halves]:
        """Undo `go_up`: the coarser scale's halves and their gradients."""
        matrix, stride = self._matrix(scale)
        coarse = self.go_down(halves, scale)
        pairs = [
            upsample_backward(grad, half, matrix, stride)
            for grad, half in zip(self._descending(grads, scale), coarse, strict=True)
        ]
        self._add_matrix_gradient(scale, pairs)
        return coarse, (pairs[0][0], pairs[1][0])

    def _go_down_backward(self, halves: Halves, grads: Halves, coarse_grads: Halves, scale: int) -> None:
        """Carry the coarser scale's gradients into the descending channels of ``grads``."""
        matrix, stride = self._matrix(scale)
        fine = self._descending(halves, scale)
        pairs = [downsample_backward(g, f, matrix, stride) for g, f in zip(coarse_grads, fine, strict=True)]
        for target, (grad, _) in zip(self._descending(grads, scale), pairs, strict=True):
            target.copy_(grad)
        self._add_matrix_gradient(scale, pairs)

    def _add_matrix_gradient(self, scale: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        place = self.plan.matrices[scale]
        total = pairs[0][1] + pairs[1][1]
        self.gradients[place] = self.gradients[place] + total if place in self.gradients else total


def round_to_grid_(halves: Halves) -> None:
    """Bring the stream onto multiples of 1 / GRID."""
    for half in halves:
        half.mul_(GRID).round_().mul_(1.0 / GRID)


class ReversibleTrunk(torch.autograd.Function):
    """The walk over the trunk; keeps the two halves of the last state and rebuilds everything before it."""

    @staticmethod
    def forward(
        ctx: Any, plan: TrunkPlan, differentiated: bool, first: Tensor, second: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        halves = (first.detach(), second.detach())
        if plan.on_grid:
            round_to_grid_(halves)
        outputs: list[Tensor | None] = [None] * plan.scales
        walk = Walk(plan, tensors)
        halves = walk.run(halves, outputs, keep=differentiated)
        ctx.plan, ctx.present = plan, [one is not None for one in outputs]
        if differentiated:
            ctx.state = [(halves, walk.kept)]
            ctx.save_for_backward(*tensors)
        return tuple(one for one in outputs if one is not None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.state:
            raise RunError(
                "iunet: the backward pass consumes the stored stream; found a second one through the same "
                "forward pass. Run the network again, or build it with reversible=False."
            )
        given = iter(grads)
        output_grads = [next(given) if present else None for present in ctx.present]
        halves, kept = ctx.state.pop()
        walk = Walk(ctx.plan, ctx.saved_tensors, kept=kept)
        first, second = walk.run_backward(halves, output_grads)
        return (None, None, first, second, *(walk.gradients.get(place) for place in range(len(walk.tensors))))
