"""Federated averaging: the next model is the mean, weighted by cases."""

from typing import final

from consilium.federation.strategies.rule import Strategy


@final
class FedAvg(Strategy):
    """The weighted mean.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    AISTATS 2017, algorithm 1.
    """
