"""Federated averaging: the next model is the mean, weighted by cases."""

from collections.abc import Mapping
from typing import final

from consilium.federation.strategies.rule import Strategy
from consilium.types import Array


@final
class FedAvg(Strategy):
    """The weighted mean.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    AISTATS 2017, algorithm 1.
    """

    def combine(
        self, base: Array, mean: Array, memory: Mapping[str, Array], *, round_number: int
    ) -> tuple[Array, dict[str, Array]]:
        return mean, {}
