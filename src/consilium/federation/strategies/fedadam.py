"""Adam at the coordinator: the mean change of the sites is taken as a gradient."""

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from consilium.errors import ConfigurationError
from consilium.federation.strategies.rule import Strategy
from consilium.types import Array


@final
class FedAdam(Strategy):
    """Adam on the mean change, without bias correction as in the source.

    Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2 (FedAdam).
    """

    memory: ClassVar[tuple[str, ...]] = ("first", "second")

    def __init__(
        self, learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        if not (learning_rate > 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and tau > 0):
            raise ConfigurationError(
                "fedadam: learning_rate and tau must be above 0, beta1 and beta2 in [0, 1); "
                f"found {learning_rate}, {tau}, {beta1}, {beta2}."
            )
        self.learning_rate, self.beta1, self.beta2, self.tau = learning_rate, beta1, beta2, tau

    def combine(
        self, base: Array, mean: Array, memory: Mapping[str, Array], *, round_number: int
    ) -> tuple[Array, dict[str, Array]]:
        change = mean.astype(np.float64) - base
        first = self.beta1 * memory["first"] + (1 - self.beta1) * change
        second = self.beta2 * memory["second"] + (1 - self.beta2) * change**2
        new = base + self.learning_rate * first / (np.sqrt(second) + self.tau)
        kept = {"first": first.astype(base.dtype), "second": second.astype(base.dtype)}
        return new.astype(base.dtype), kept
