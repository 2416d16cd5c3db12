"""Federated averaging with a spring: each site's loss is held near the model it received."""

from typing import final

from consilium.errors import ConfigurationError
from consilium.federation.strategies.rule import Strategy


@final
class FedProx(Strategy):
    """The weighted mean; sites add ``proximal_mu / 2 * ||w - w_received||^2`` to their loss.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, algorithm 2.
    """

    def __init__(self, proximal_mu: float = 0.01) -> None:
        if not proximal_mu >= 0:
            raise ConfigurationError(f"fedprox: proximal_mu must be at least 0; found {proximal_mu}.")
        self.proximal_mu = float(proximal_mu)

    def site_options(self) -> dict[str, float]:
        return {"proximal_mu": self.proximal_mu}
