"""What a person may decide about a training; everything else the plan computes from the data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from consilium.errors import ConfigurationError
from consilium.networks.config import KINDS, STEMS
from consilium.training.augment import Augmentation
from consilium.types import Shape, Triple

MODES = ("auto", "whole", "patch")
WATCH_ACTIONS = ("lower", "stop", "off")
CROPS = ("auto", "none", "body")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a training; every default is meant to be left alone.

    Args:
        structures: What to learn, in order; empty: everything that is contoured in at least one case.
        reader: Whose contours; None: each case's first reader who is not derived.
        network: ``"iunet"`` (invertible, lean in memory) or ``"unet3d"``.
        stem: See `consilium.networks.config.NetworkConfig`.
        channels: Per scale; empty: the plan's choice.
        mode: ``"whole"`` volumes, ``"patch"``, or ``"auto"``: whole where the memory allows.
        spacing_zyx_mm: Of the network's grid; None: the plan's choice.
        patch_zyx: Voxels of a patch; None: the plan's choice.
        crops: Where whole volumes are planned: begin with crops around structures (see `Plan.crop_zyx`).
        crop: ``"body"`` cuts air away, ``"none"`` does not, ``"auto"``: body for CT.
        scale_weights: Weight of the loss at each scale, finest first; empty: the finest only.
        learned_weights: Learn the weights of as many scales as `scale_weights` has.
        adaptation: Train a network that refines the contours of an earlier day: it also takes the earlier
            image and its structures, made from each case by random deformations.
        dropout: Of channels, in [0, 1).
        rate: Highest learning rate of AdamW.
        head_rate: The same for the heads. From the prior to certainty a logit must rise by about eight, and
            AdamW moves each of a head's few weights by no more than the rate per step: at the
            others' rate, small structures stay at zero for hundreds of steps.
        weight_decay: Of AdamW, on convolution weights only.
        warm_up: Share of the budget in which the rate rises from zero.
        clip_norm: Largest norm of a gradient.
        average: How long the moving average of the weights looks back, as a share of the steps done, in
            [0, 1); 0: no average. Validation and the kept model use the average.
        watch: What to do when training Dice rises while validation falls: ``"lower"`` the rate, ``"stop"``,
            or ``"off"``.
        augmentation: Ranges of the random changes.
        seed: Decides initial weights, order, patches and changes.

    Raises:
        ConfigurationError: Names the field, the bound and the value.
    """

    structures: tuple[str, ...] = ()
    reader: str | None = None
    network: str = "iunet"
    stem: str = "squeeze"
    channels: tuple[int, ...] = ()
    mode: str = "auto"
    spacing_zyx_mm: Triple | None = None
    patch_zyx: Shape | None = None
    crops: bool = True
    crop: str = "auto"
    scale_weights: tuple[float, ...] = ()
    learned_weights: bool = False
    adaptation: bool = False
    dropout: float = 0.0
    rate: float = 2e-3
    head_rate: float = 0.1
    weight_decay: float = 1e-2
    warm_up: float = 0.05
    clip_norm: float = 1.0
    average: float = 0.1
    watch: str = "lower"
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("network", KINDS),
            ("stem", STEMS),
            ("mode", MODES),
            ("watch", WATCH_ACTIONS),
            ("crop", CROPS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"training: {name} must be one of {allowed}; got {getattr(self, name)!r}."
                )
        for name, low, high in (
            ("rate", 1e-9, 1.0),
            ("head_rate", 1e-9, 10.0),
            ("weight_decay", 0.0, 1.0),
            ("warm_up", 0.0, 0.5),
            ("clip_norm", 1e-9, math.inf),
            ("average", 0.0, 0.99),
            ("seed", 0, 2**31),
        ):
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                raise ConfigurationError(f"training: {name} must be in [{low:g}, {high:g}]; got {value}.")
        if self.patch_zyx is not None and min(self.patch_zyx) < 1:
            raise ConfigurationError(f"training: patch_zyx must be at least 1 voxel; got {self.patch_zyx}.")
        if len(set(self.structures)) != len(self.structures):
            raise ConfigurationError(f"training: structures must differ; got {list(self.structures)}.")
        if self.learned_weights and not self.scale_weights:
            raise ConfigurationError("training: learned_weights needs scale_weights, one per scale to use.")
        if any(w < 0 for w in self.scale_weights) or (self.scale_weights and not any(self.scale_weights)):
            raise ConfigurationError(
                f"training: scale_weights must not be negative nor all zero; got {self.scale_weights}."
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        record = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "TrainingConfig":
        """The inverse of `to_json`; missing fields take their default.

        Raises:
            ConfigurationError: An unknown field or a value that cannot be.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            if "augmentation" in values:
                values["augmentation"] = Augmentation(**values["augmentation"])
            return cls(**values)
        except TypeError as error:
            raise ConfigurationError(f"training: unknown setting: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: exactly one of the three.

    ``steps`` and ``epochs`` give the same weights whenever they are run; ``minutes`` depends on the machine.

    Args:
        steps: Of the optimiser.
        epochs: Passes over the training cases.
        minutes: Of training and validation together.
        cpu_time: Count ``minutes`` in processor time of all threads, which other work on the machine does not
            use up, instead of by the clock.

    Raises:
        ConfigurationError: None or several are given, or one is not positive.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    cpu_time: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.epochs, self.minutes) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ConfigurationError(
                f"budget: exactly one of steps, epochs and minutes must be given and positive; got {self}."
            )

    def share(self, *, step: int, steps_per_epoch: int, elapsed_s: float) -> float:
        """How much is spent, from 0 to 1."""
        if self.minutes is not None:
            return min(1.0, elapsed_s / (60 * self.minutes))
        return min(1.0, step / self.last_step(steps_per_epoch))

    def last_step(self, steps_per_epoch: int) -> int:
        """Number of steps in all; 0 where minutes decide."""
        if self.steps is not None:
            return self.steps
        return 0 if self.epochs is None else self.epochs * steps_per_epoch

    def to_json(self) -> dict[str, Any]:
        """The one that is given."""
        return {key: value for key, value in vars(self).items() if value}
