"""The configuration of a network: one frozen object that both frameworks and every run record share."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from consilium.errors import ConfigurationError

Step: TypeAlias = tuple[int, ...]
"""A kernel or stride per axis: (z, y, x), or (y, x) for a network of two dimensions."""

KINDS = ("unet3d", "iunet")
STEMS = ("plain", "squeeze")
NORMS = ("instance", "none")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that decides a network's shape; an object that exists can be built.

    Args:
        kind: ``"unet3d"`` or ``"iunet"`` (invertible; its memory does not grow with its depth).
        in_channels: Image channels.
        out_channels: Structures; each has its own logit, so structures may overlap.
        channels: Channels per scale, finest first. For ``iunet`` these are the two halves together, at the
            resolution behind the stem; a scale's channels divided by the number of voxels that one step of
            ``resampling`` joins must be even and smaller than the next finer scale's channels.
        resampling: Stride between a scale and the next coarser one, per axis in array order, 1 or 2 each;
            ``(1, 2, 2)`` for slices thicker than pixels. Empty: 2 along every axis.
        kernels: Kernel per scale, odd numbers in array order. Empty: 3 everywhere, but 1 along an axis until
            it has been halved the first time where the step from that scale leaves it alone.
        blocks: Per scale and side: convolutions (``unet3d``) or couplings of two convolutions each
            (``iunet``). Empty: 2 everywhere.
        stem: ``iunet`` only. ``"plain"``: a convolution at full resolution. ``"squeeze"``: neighbouring
            voxels become channels first, by ``stem_stride``; leaner and faster.
        stem_stride: Stride of the squeeze stem. Empty: 2 along every axis that the first resampling halves.
        norm: ``"instance"`` or ``"none"``.
        dropout: Probability that a channel of a block is silenced in training, in [0, 1).
        heads: How many of the finest decoder scales give logits in training, at least 1.
        dims: 3, or 2 for single slices.
        bf16: Convolve in bfloat16; parameters, logits and the invertible stream stay float32.
        fixed_point: ``iunet`` only: keep the stream on multiples of 2^-16, so that the backward pass
            rebuilds it bit for bit. Without effect in float64.
        reversible: ``iunet`` only: rebuild activations in the backward pass; False is the plain path, for
            `torch.func` and comparison.
        checkpointing: ``unet3d`` only: recompute each scale's activations in the backward pass.

    Raises:
        ConfigurationError: Names the field, the bound and the value.
    """

    kind: str = "iunet"
    in_channels: int = 1
    out_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128, 256)
    resampling: tuple[Step, ...] = ()
    kernels: tuple[Step, ...] = ()
    blocks: tuple[int, ...] = ()
    stem: str = "squeeze"
    stem_stride: Step = ()
    norm: str = "instance"
    dropout: float = 0.0
    heads: int = 1
    dims: int = 3
    bf16: bool = False
    fixed_point: bool = True
    reversible: bool = True
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._check_scalars()
        scales = len(self.channels)
        axes = range(self.dims)
        if not self.resampling:
            object.__setattr__(self, "resampling", ((2,) * self.dims,) * (scales - 1))
        if not self.blocks:
            object.__setattr__(self, "blocks", (2,) * scales)
        if not self.stem_stride:
            first = self.resampling[0] if self.resampling else (2,) * self.dims
            object.__setattr__(self, "stem_stride", first)
        if not self.kernels:
            flat = [all(step[axis] == 1 for step in self.resampling[:1]) and scales > 1 for axis in axes]
            kernels = []
            for scale in range(scales):
                flat = [flat[a] and scale < scales - 1 and self.resampling[scale][a] == 1 for a in axes]
                kernels.append(tuple(1 if f else 3 for f in flat))
            object.__setattr__(self, "kernels", tuple(kernels))
        self._check_scales()
        if self.kind == "iunet":
            self._check_halves()

    def _check_scalars(self) -> None:
        for name, allowed in (("kind", KINDS), ("stem", STEMS), ("norm", NORMS), ("dims", (2, 3))):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigurationError(f"network: {name} must be one of {allowed}; got {value!r}.")
        for name in ("in_channels", "out_channels", "heads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"network: {name} must be at least 1; got {getattr(self, name)}.")
        if not self.channels or min(self.channels) < 1:
            raise ConfigurationError(f"network: channels must be positive numbers; got {self.channels}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigurationError(f"network: dropout must be in [0, 1); got {self.dropout}.")

    def _check_scales(self) -> None:
        scales = len(self.channels)
        for name, expected in (("resampling", scales - 1), ("kernels", scales), ("blocks", scales)):
            if len(getattr(self, name)) != expected:
                raise ConfigurationError(
                    f"network: {name} must have {expected} entries for {scales} scales; "
                    f"got {getattr(self, name)}."
                )
        for step in (*self.resampling, self.stem_stride):
            if len(step) != self.dims or not set(step) <= {1, 2}:
                raise ConfigurationError(f"network: strides must be {self.dims} numbers, 1 or 2; got {step}.")
        for kernel in self.kernels:
            if len(kernel) != self.dims or any(k < 1 or k % 2 == 0 for k in kernel):
                raise ConfigurationError(f"network: kernels must be {self.dims} odd numbers; got {kernel}.")
        if min(self.blocks) < 1:
            raise ConfigurationError(f"network: blocks must be at least 1 per scale; got {self.blocks}.")
        if self.heads > scales:
            raise ConfigurationError(f"network: heads must be at most the {scales} scales; got {self.heads}.")

    def _check_halves(self) -> None:
        if any(c % 2 for c in self.channels):
            raise ConfigurationError(f"network: channels of an iunet must be even; got {self.channels}.")
        for scale, step in enumerate(self.resampling):
            joined = math.prod(step)
            finer, coarser = self.channels[scale], self.channels[scale + 1]
            if coarser % (2 * joined) or coarser // joined > finer:
                raise ConfigurationError(
                    f"network: channels[{scale + 1}] of an iunet must be a multiple of {2 * joined} and at "
                    f"most {joined * finer} behind {finer} channels and a step of {step}; got {coarser}."
                )

    @property
    def scales(self) -> int:
        """Number of resolutions."""
        return len(self.channels)

    @property
    def total_stride(self) -> Step:
        """How many voxels along each axis one voxel of the coarsest scale stands for."""
        steps = list(self.resampling)
        if self.kind == "iunet" and self.stem == "squeeze":
            steps.append(self.stem_stride)
        return tuple(math.prod(step[a] for step in steps) for a in range(self.dims))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: tuples become lists."""

        def plain(value: Any) -> Any:
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigurationError: A key that is not a field, or a value that cannot be.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigurationError(f"network: unknown settings {unknown}. Known are {sorted(known)}.")

        def frozen(value: Any) -> Any:
            return tuple(frozen(v) for v in value) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in values.items()})


def choose_resampling(
    spacing_zyx_mm: tuple[float, ...], scales: int, *, first_is_stem: bool = False
) -> tuple[Step, ...]:
    """Strides that bring anisotropic voxels towards cubes: an axis is halved unless it is already coarse.

    An axis rests while its spacing is more than 1.5 times the finest axis's spacing at that scale.

    Args:
        spacing_zyx_mm: Voxel spacing in array order, mm, positive; two numbers for two dimensions.
        scales: Number of scales, at least 1.
        first_is_stem: Start behind a squeeze stem, whose stride is chosen by the same rule.

    Returns:
        One stride less than scales; the stem's stride comes first where ``first_is_stem``.
    """
    if min(spacing_zyx_mm) <= 0:
        raise ConfigurationError(f"network: spacing must be positive; got {spacing_zyx_mm} mm.")
    spacing, steps = list(spacing_zyx_mm), []
    for _ in range(scales - 1 + first_is_stem):
        step = tuple(1 if s > 1.5 * min(spacing) else 2 for s in spacing)
        spacing = [s * k for s, k in zip(spacing, step, strict=True)]
        steps.append(step)
    return tuple(steps)
