"""What rounds do to a site's gradients: FedProx's spring and SCAFFOLD's correction."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from consilium.federation.local import LocalTask
from consilium.federation.parameters import Parameters
from consilium.types import Array


class GradientRule:
    """Changes gradients in place, and adds up the plain ones for new control variates.

    SCAFFOLD's option II, ``(x - y) / (K * rate) - (c - c_i)``, is the mean of the uncorrected gradients where
    plain gradient descent is used. With another optimiser only the mean itself keeps that meaning, so it is
    what is computed here.

    Args:
        received: The model as received, by name.
        task: The round's numbers.
        device: Where the training runs.
        only: Names of the parameters that may change; empty: all. The others keep what was received, so that
            heads learn on the trunk that they will be used with.

    Source:
        Li et al. 2020 (FedProx), algorithm 2; Karimireddy et al. 2020 (SCAFFOLD), algorithm 1.
    """

    def __init__(
        self,
        received: Mapping[str, Array],
        task: LocalTask,
        device: torch.device,
        *,
        only: tuple[str, ...] = (),
    ) -> None:
        self._mu = task.proximal_mu
        self._received = _tensors(received, device) if self._mu else {}
        self._correction = _tensors(task.correction, device)
        self._sums = {name: torch.zeros_like(value) for name, value in self._correction.items()}
        self._only = frozenset(only)
        self._steps = 0

    def __call__(self, named: Iterator[tuple[str, nn.Parameter]]) -> None:
        """Change the gradients of one step."""
        self._steps += 1
        for name, parameter in named:
            if self._only and name not in self._only:
                parameter.grad = None
            if parameter.grad is None:
                continue
            if name in self._sums:
                self._sums[name].add_(parameter.grad)
            if name in self._received:
                parameter.grad.add_(parameter.detach() - self._received[name], alpha=self._mu)
            if name in self._correction:
                parameter.grad.add_(self._correction[name])

    def control_variates(self) -> Parameters:
        """The mean of the uncorrected gradients, by name; empty without SCAFFOLD."""
        return {name: (value / max(1, self._steps)).cpu().numpy() for name, value in self._sums.items()}


def _tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)).to(device) for name, value in arrays.items()}
