"""The invertible trunk: couplings and orthogonal resampling, reversible or by plain autograd."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consilium.networks.blocks import Triple, as_three, draw_seed, run_function
from consilium.networks.branch import Branch, BranchPlan, RoundToInteger, branch_value
from consilium.networks.config import NetworkConfig
from consilium.networks.lifting import GRID
from consilium.networks.resampling import OrthogonalMatrix, Resample
from consilium.networks.reversible import (
    Couplings,
    Halves,
    ReversibleTrunk,
    TrunkPlan,
    Walk,
    read_out,
    round_to_grid_,
)


class LinearHead(nn.Module):
    """Weight (O, C) and bias (O,) of a read-out of the trunk's features."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, channels))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.01)


class InvertibleTrunk(nn.Module):
    """A U-Net whose every step can be undone, so that training stores two halves of one state only.

    The state is two halves of ``channels[0] / 2`` channels each. A coupling adds a branch of one half to the
    other; resampling carries some channels of each half to the next coarser scale by an orthogonal matrix,
    and the rest waits there as the skip connection. Everything is channels-last inside.

    Source: Etmann, Ke, Schönlieb 2020, "iUNets", sections 2 and 3; coupling: Dinh et al. 2014, "NICE".
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.strides: tuple[Triple, ...] = tuple(as_three(step) for step in config.resampling)
        last = config.scales - 1
        self.encoder = nn.ModuleList(self._stage(scale) for scale in range(last + 1))
        self.decoder = nn.ModuleList(self._stage(scale) for scale in range(last))
        self.resampling = nn.ModuleList(OrthogonalMatrix(stride) for stride in self.strides)

    def _stage(self, scale: int) -> nn.ModuleList:
        config = self.config
        gain = (2 * config.blocks[scale]) ** -0.5
        return nn.ModuleList(
            Branch(
                config.channels[scale] // 2,
                kernel=as_three(config.kernels[scale]),
                normed=config.norm == "instance",
                gain=gain,
            )
            for _ in range(config.blocks[scale])
        )

    def _couplings(self, stage: nn.Module, tensors: list[Tensor]) -> Couplings:
        dropout = self.config.dropout if self.training else 0.0
        couplings = []
        for branch in stage.children():
            assert isinstance(branch, Branch)
            plan = BranchPlan(
                normed=branch.norm_weight is not None,
                bf16=self.config.bf16,
                fixed_point=self.config.fixed_point,
                dropout=dropout,
                seed=draw_seed() if dropout else None,
            )
            place = slice(len(tensors), len(tensors) + len(branch.tensors()))
            tensors.extend(branch.tensors())
            couplings.append((plan, place))
        return tuple(couplings)

    def plan(
        self, dtype: torch.dtype, heads: Sequence[LinearHead | None] = (), features: Sequence[int] = ()
    ) -> tuple[TrunkPlan, list[Tensor]]:
        """The walk for one forward pass (its dropout drawn) and the tensors that it reads."""
        config, tensors = self.config, list[Tensor]()
        encoder = tuple(self._couplings(stage, tensors) for stage in self.encoder)
        decoder = tuple(self._couplings(stage, tensors) for stage in self.decoder)
        matrices = tuple(range(len(tensors), len(tensors) + len(self.resampling)))
        tensors.extend(matrix() for matrix in self.resampling)
        places: list[tuple[int, int] | None] = [None] * config.scales
        for scale, head in enumerate(heads):
            if head is not None:
                places[scale] = (len(tensors), len(tensors) + 1)
                tensors.extend((head.weight, head.bias))
        plan = TrunkPlan(
            strides=self.strides,
            kept=tuple(
                config.channels[scale + 1] // (2 * stride[0] * stride[1] * stride[2])
                for scale, stride in enumerate(self.strides)
            ),
            encoder=encoder,
            decoder=decoder,
            matrices=matrices,
            heads=tuple(places),
            features=tuple(scale in features for scale in range(config.scales)),
            on_grid=config.fixed_point and dtype == torch.float32,
        )
        return plan, tensors

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        *,
        heads: Sequence[LinearHead | None] = (),
        features: Sequence[int] = (),
        consume: bool = False,
    ) -> list[Tensor]:
        """Outputs of decoder scales, finest first: logits where a scale has a head, features where asked for.

        Args:
            first: Half of the state, (B, channels[0] / 2, Z, Y, X); sizes are multiples of all strides.
            second: The other half.
            heads: Head per scale, finest first, or None; may be shorter than the scales.
            features: Scales whose features (B, channels[s], ...) themselves are wanted.
            consume: The halves may be overwritten; without it they are copied first.
        """
        plan, tensors = self.plan(first.dtype, heads, features)
        if not self.config.reversible:
            return _run_plainly(plan, tensors, (first, second))
        layout = torch.channels_last_3d
        if consume:
            first, second = (half.contiguous(memory_format=layout) for half in (first, second))
        else:
            first, second = (half.clone(memory_format=layout) for half in (first, second))
        return list(run_function(ReversibleTrunk, plan, torch.is_grad_enabled(), first, second, *tensors))

    @torch.no_grad()
    def transform(self, first: Tensor, second: Tensor) -> Halves:
        """The final state of the decoder, without outputs or gradients (dropout off)."""
        plan, tensors = self._silent_plan(first.dtype)
        halves = self._copy(first, second)
        if plan.on_grid:
            round_to_grid_(halves)
        return Walk(plan, tensors).run(halves, [None] * plan.scales)

    @torch.no_grad()
    def inverse(self, first: Tensor, second: Tensor) -> Halves:
        """The state before `transform`: bit for bit on the grid, to rounding off it."""
        plan, tensors = self._silent_plan(first.dtype)
        return Walk(plan, tensors).invert(self._copy(first, second))

    def _silent_plan(self, dtype: torch.dtype) -> tuple[TrunkPlan, list[Tensor]]:
        plan, tensors = self.plan(dtype)

        def silent(stages: tuple[Couplings, ...]) -> tuple[Couplings, ...]:
            return tuple(
                tuple((dataclasses.replace(branch, seed=None), place) for branch, place in stage)
                for stage in stages
            )

        return dataclasses.replace(plan, encoder=silent(plan.encoder), decoder=silent(plan.decoder)), tensors

    def _copy(self, first: Tensor, second: Tensor) -> Halves:
        layout = torch.channels_last_3d
        return first.clone(memory_format=layout), second.clone(memory_format=layout)


def _run_plainly(plan: TrunkPlan, tensors: Sequence[Tensor], halves: Halves) -> list[Tensor]:
    """The same walk by ordinary autograd: every activation is stored, `torch.func` works."""
    if plan.on_grid:
        first, second = (run_function(RoundToInteger, half * GRID) * (1.0 / GRID) for half in halves)
        halves = first, second
    skips: list[Halves] = []
    outputs: list[Tensor] = []
    last = plan.scales - 1
    for scale in range(last):
        halves = _couple_plainly(halves, plan.encoder[scale], tensors)
        skips.append(halves)
        halves = _resample_plainly(plan, tensors, halves, scale, up=False)
    halves = _couple_plainly(halves, plan.encoder[last], tensors)
    _emit_plainly(plan, tensors, halves, last, outputs)
    for scale in reversed(range(last)):
        risen = _resample_plainly(plan, tensors, halves, scale, up=True)
        kept = plan.kept[scale]
        joined = [torch.cat([up, skip[:, kept:]], dim=1) for up, skip in zip(risen, skips.pop(), strict=True)]
        halves = _couple_plainly((joined[0], joined[1]), plan.decoder[scale], tensors)
        _emit_plainly(plan, tensors, halves, scale, outputs)
    return outputs[::-1]


def _couple_plainly(halves: Halves, couplings: Couplings, tensors: Sequence[Tensor]) -> Halves:
    first, second = halves
    for plan, place in couplings:
        first, second = second, first + branch_value(second, tuple(tensors[place]), plan)
    return first, second


def _resample_plainly(
    plan: TrunkPlan, tensors: Sequence[Tensor], halves: Halves, scale: int, *, up: bool
) -> Halves:
    matrix, stride = tensors[plan.matrices[scale]], plan.strides[scale]
    parts = halves if up else (halves[0][:, : plan.kept[scale]], halves[1][:, : plan.kept[scale]])
    first, second = (run_function(Resample, part, matrix, stride, up, plan.on_grid) for part in parts)
    return first, second


def _emit_plainly(
    plan: TrunkPlan, tensors: Sequence[Tensor], halves: Halves, scale: int, outputs: list[Tensor]
) -> None:
    places = plan.heads[scale]
    if places is not None:
        outputs.append(read_out(halves, tensors[places[0]], tensors[places[1]]))
    elif plan.features[scale]:
        outputs.append(torch.cat(halves, dim=1))
