"""The seam to training: one function that a hospital's own code provides, and what it hands back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from consilium.errors import ConfigurationError
from consilium.federation.parameters import Parameters
from consilium.types import Array


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """What the coordinator asks of one site in one round, beside the parameters.

    Args:
        round_number: Counted from 0.
        seed: Seed of this site and round: training that uses it alone repeats bit for bit after a crash.
        structures: The order of the heads' rows.
        proximal_mu: FedProx: add ``mu / 2 * ||w - w_received||^2`` to the loss; 0 for none.
        correction: SCAFFOLD: add this array to the gradient of the parameter of that name; empty for none.
        wants_control: SCAFFOLD: the result must carry ``control_variates``.
        memory: What the training kept (``SiteResult.memory``) after the last round in which this site's
            update counted; empty before the first.
    """

    round_number: int
    seed: int = 0
    structures: tuple[str, ...] = ()
    proximal_mu: float = 0.0
    correction: Mapping[str, Array] = field(default_factory=dict)
    wants_control: bool = False
    memory: Parameters = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """What training at one site ends with.

    Args:
        parameters: All parameters after training, of the same names, shapes and kinds as given. Names that
            stay at the site (local normalisation) may be among them.
        weight: Number of training cases used, at least 1.
        cases_by_structure: Structure -> number of those cases in which it is contoured.
        metrics: Figures by name: ``loss``, ``dice``, ``seconds``, ``steps`` or ``cases``, alone or as
            ``dice/Mandible``. Numbers only.
        control_variates: SCAFFOLD: the site's new control variates, by name: the mean of the gradients
            without ``task.correction``, which for plain gradient descent is the paper's option II.
        memory: Arrays that the training wants back in the next round, e.g. its optimiser's moments. They
            stay at the site.
    """

    parameters: Parameters
    weight: int
    cases_by_structure: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    control_variates: Parameters = field(default_factory=dict)
    memory: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.weight) is not int or self.weight < 1:
            raise ConfigurationError(
                f"site result: weight must be a whole number of cases from 1; found {self.weight!r}."
            )
        for name, count in self.cases_by_structure.items():
            if type(count) is not int or not 1 <= count <= self.weight:
                raise ConfigurationError(
                    f"site result: {name} must have 1 to {self.weight} cases; found {count!r}."
                )
        for name, value in self.metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigurationError(
                    f"site result: metric {name} must be a finite number; found {value!r}."
                )


class LocalUpdate(Protocol):
    """Train at home: parameters in, parameters and counts out.

    Names absent from ``parameters`` (local ones, in the first round) keep the model's initial values. The
    same call with the same ``task`` must give the same bits: then a crash costs time and nothing else.
    """

    def __call__(self, parameters: Parameters, *, round_number: int, task: LocalTask) -> SiteResult: ...
