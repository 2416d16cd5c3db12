"""Combination rules, one small file each; `build_strategy` finds one by name."""

from consilium.errors import ConfigurationError
from consilium.federation.settings import StrategyChoice
from consilium.federation.strategies.fedadam import FedAdam
from consilium.federation.strategies.fedavg import FedAvg
from consilium.federation.strategies.fedprox import FedProx
from consilium.federation.strategies.robust import Krum, Median, TrimmedMean
from consilium.federation.strategies.rule import Strategy
from consilium.federation.strategies.scaffold import Scaffold

STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "scaffold": Scaffold,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
}


def build_strategy(choice: StrategyChoice) -> Strategy:
    """The rule of that name with its options.

    Raises:
        ConfigurationError: If the name or an option is unknown, or a value cannot be.
    """
    if choice.name not in STRATEGIES:
        raise ConfigurationError(f"strategy: must be one of {', '.join(STRATEGIES)}; found {choice.name!r}.")
    try:
        return STRATEGIES[choice.name](**choice.options)
    except TypeError as fault:
        raise ConfigurationError(
            f"strategy {choice.name}: {fault}. See the reference for its options."
        ) from fault


__all__ = ["STRATEGIES", "Strategy", "build_strategy"]
