"""Rules that bear some bad updates, each saying from how many sites on it can.

They ignore weights: a weight is a claim, and a robust rule believes no claims. All updates of a round are
kept on disk until it closes.
"""

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np

from consilium.errors import ConfigurationError
from consilium.federation.strategies.rule import Strategy
from consilium.types import Array


@final
class Median(Strategy):
    """The median of every element; bears fewer than half bad updates.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, algorithm 1, option I.
    """

    needs_every_update: ClassVar[bool] = True

    @property
    def least_updates(self) -> int:
        return 3

    def merge(self, values: Sequence[Array]) -> Array:
        middle: Array = np.median(np.stack(values), axis=0)
        return middle.astype(values[0].dtype)


@final
class TrimmedMean(Strategy):
    """The mean of every element without its ``trim`` largest and ``trim`` smallest values.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, algorithm 1, option II.
    """

    needs_every_update: ClassVar[bool] = True

    def __init__(self, trim: int = 1) -> None:
        if trim != int(trim) or trim < 1:
            raise ConfigurationError(f"trimmed_mean: trim must be a whole number from 1; found {trim}.")
        self.trim = int(trim)

    @property
    def least_updates(self) -> int:
        return 2 * self.trim + 1

    def merge(self, values: Sequence[Array]) -> Array:
        # Sorted first, so that the sum has one order whatever the order of arrival.
        kept = np.sort(np.stack(values).astype(np.float64), axis=0)[self.trim : len(values) - self.trim]
        mean: Array = kept.mean(axis=0)
        return mean.astype(values[0].dtype)


@final
class Krum(Strategy):
    """The mean of the ``keep`` updates that lie closest to their neighbours; bears ``bad`` colluding updates.

    Source: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4 (Krum) and
    Multi-Krum.
    """

    needs_every_update: ClassVar[bool] = True
    compares_models: ClassVar[bool] = True

    def __init__(self, bad: int = 1, keep: int = 1) -> None:
        if bad != int(bad) or bad < 1 or keep != int(keep) or keep < 1:
            raise ConfigurationError(
                f"krum: bad and keep must be whole numbers from 1; found {bad} and {keep}."
            )
        self.bad, self.keep = int(bad), int(keep)

    @property
    def least_updates(self) -> int:
        return max(2 * self.bad + 3, self.keep)

    def choose(self, distances: Array) -> list[int]:
        count = len(distances)
        # The nearest n - bad - 2 others; the distance to itself is the 0 that is left out.
        nearest = np.sort(distances, axis=1)[:, 1 : max(2, count - self.bad - 1)]
        order = np.argsort(nearest.sum(axis=1), kind="stable")
        return sorted(int(index) for index in order[: self.keep])

    def merge(self, values: Sequence[Array]) -> Array:
        ordered = np.sort(np.stack(values).astype(np.float64), axis=0)
        mean: Array = ordered.mean(axis=0)
        return mean.astype(values[0].dtype)
