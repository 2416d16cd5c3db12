"""What hospitals agree on about training: the ``[training]`` table of the federation file, as one object."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from consilium.errors import CheckpointError, ConfigurationError
from consilium.federation.parameters import Parameters
from consilium.federation.settings import FederationSettings, HeadMap
from consilium.networks.build import build_network, set_output_prior
from consilium.training.config import TrainingConfig
from consilium.training.plan import Plan

KNOWN = (
    *("steps_per_round", "validate_every", "personal_steps", "memory_gib", "device", "bf16"),
    *("config", "plan", "prior"),
)
ABSENT_IN_TOML = ("patch_zyx", "mirror", "crop_zyx")
"""Fields of a plan that may be None, which TOML cannot say."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How every hospital trains.

    Args:
        plan: The network, the grid, the structures in the order of its outputs.
        config: Of the training; no moving average is kept and no over-fitting watched, since rounds do both.
        prior: Share of voxels inside each structure: where the network's output starts.
        rounds: Of the federation.
        steps_per_round: Training steps of each hospital in each round.
        validate_every: Every so many rounds the received model is scored on the hold-out; 0: never.
        personal_steps: Steps of the fine-tuning at home after the end.
    """

    plan: Plan
    config: TrainingConfig
    prior: tuple[float, ...]
    rounds: int
    steps_per_round: int = 20
    validate_every: int = 5
    personal_steps: int = 50

    def __post_init__(self) -> None:
        for name, low in (("steps_per_round", 1), ("validate_every", 0), ("personal_steps", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigurationError(
                    f"training: {name} must be a whole number from {low}; got {value!r}."
                )
        if len(self.prior) != len(self.plan.structures):
            raise ConfigurationError(
                f"training: prior must have one share per structure; got {len(self.prior)} for "
                f"{len(self.plan.structures)}."
            )

    @property
    def total_steps(self) -> int:
        """Of all rounds together."""
        return self.rounds * self.steps_per_round

    def build_initial(self) -> Parameters:
        """The first model, which everybody can make: weights from the seed, outputs at the prior."""
        network = build_network(replace(self.plan.network, bf16=False), seed=self.config.seed)
        set_output_prior(network, self.plan.output_start(self.prior))
        return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def read_agreement(settings: FederationSettings) -> Agreement:
    """The agreement of a federation.

    Raises:
        ConfigurationError: If the file has no plan yet, an unknown name, or a value that cannot be; or if its
            heads are not the plan's.
    """
    table = settings.training
    check_names(table)
    if "plan" not in table or "prior" not in table:
        raise ConfigurationError(
            "federation file: needs [training.plan] and training.prior. The coordinator writes them from the "
            "hospitals' sketches: consilium federation plan FOLDER SKETCH…"
        )
    plan, config = plan_from_table(table["plan"]), read_config(table)
    agreement = Agreement(
        plan=plan,
        config=config,
        prior=tuple(float(value) for value in table["prior"]),
        rounds=settings.rounds,
        **{name: table[name] for name in KNOWN[:3] if name in table},
    )
    if settings.heads != head_map(plan):
        raise ConfigurationError(
            "federation file: [heads] must name the plan's structures and head arrays; they differ. Write "
            "the file again with consilium federation plan."
        )
    return agreement


def check_names(table: Mapping[str, Any]) -> None:
    """Refuse a name in ``[training]`` that nothing reads.

    Raises:
        ConfigurationError: Which one.
    """
    unknown = sorted(set(table) - set(KNOWN))
    if unknown:
        raise ConfigurationError(
            f"federation file: {unknown[0]!r} is not a setting of [training]. Known: {', '.join(KNOWN)}."
        )


def read_config(table: Mapping[str, Any]) -> TrainingConfig:
    """The training's settings from ``[training.config]``, as rounds need them."""
    config = TrainingConfig.from_json(table.get("config", {}))
    return replace(config, average=0.0, watch="off")


def head_map(plan: Plan) -> HeadMap:
    """Which rows of which arrays belong to which structure: the heads' rows are in order of structure."""
    with torch.device("meta"):
        network = build_network(plan.network, seed=None)
    heads = tuple(sorted(name for name in network.state_dict() if name.startswith("heads.")))
    return HeadMap(structures=plan.structures, tensors=heads)


def plan_from_table(table: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_table`.

    Raises:
        ConfigurationError: A field is missing or cannot be.
    """
    try:
        return Plan.from_json({**dict.fromkeys(ABSENT_IN_TOML), **table})
    except CheckpointError as fault:
        raise ConfigurationError(f"federation file: [training.plan]: {fault}") from fault


def plan_table(plan: Plan) -> dict[str, Any]:
    """A plan as TOML can hold it."""
    return {key: value for key, value in plan.to_json().items() if value is not None}
