"""SCAFFOLD: each site corrects its gradients by how they differ from everybody's."""

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from consilium.errors import ConfigurationError
from consilium.federation.strategies.rule import Strategy
from consilium.types import Array


@final
class Scaffold(Strategy):
    """The mean of the models, and control variates beside it (twice the bytes in both directions).

    Source: Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1; global step size ``global_rate``.
    """

    uses_control: ClassVar[bool] = True

    def __init__(self, global_rate: float = 1.0, control_norm: float = 1e4) -> None:
        if not (global_rate > 0 and control_norm > 0):
            raise ConfigurationError(
                f"scaffold: global_rate and control_norm must be above 0; found {global_rate} and "
                f"{control_norm}."
            )
        self.global_rate, self.control_norm = global_rate, control_norm

    def combine(
        self, base: Array, mean: Array, memory: Mapping[str, Array], *, round_number: int
    ) -> tuple[Array, dict[str, Array]]:
        if self.global_rate == 1.0:
            return mean, {}
        return (base + self.global_rate * (mean.astype(np.float64) - base)).astype(base.dtype), {}


def combine_control(control: Array, mean_change: Array, *, participating: int, enrolled: int) -> Array:
    """The coordinator's next control variate: ``c + |S| / N * mean over S of (c_i_new - c_i)``."""
    new = control + (participating / enrolled) * mean_change.astype(np.float64)
    return new.astype(control.dtype)
