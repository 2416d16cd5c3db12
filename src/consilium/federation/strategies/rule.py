"""What a combination rule is: a few numbers for the sites, and one function on one array."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from consilium.types import Array


class Strategy:
    """A combination rule: by itself, the mean. Final classes in the files beside this one; no rule inherits
    from another.

    Attributes:
        uses_control: Sites send and receive control variates.
        needs_every_update: The rule looks at all updates at once, so they are kept on disk until the round
            closes.
        compares_models: The rule chooses whole models by their distances.
        memory: Names of arrays per parameter that the rule keeps from round to round.
    """

    uses_control: ClassVar[bool] = False
    needs_every_update: ClassVar[bool] = False
    compares_models: ClassVar[bool] = False
    memory: ClassVar[tuple[str, ...]] = ()

    @property
    def least_updates(self) -> int:
        """Fewest updates the rule works with."""
        return 1

    def site_options(self) -> dict[str, float]:
        """Numbers that sites need while training."""
        return {}

    @property
    def takes_mean(self) -> bool:
        """Whether the next model is the mean as it stands: then it is not written a second time."""
        return type(self).combine is Strategy.combine and not self.uses_control

    def combine(
        self, base: Array, mean: Array, memory: Mapping[str, Array], *, round_number: int
    ) -> tuple[Array, dict[str, Array]]:
        """One array of the next model.

        Args:
            base: It in the model sent out.
            mean: Its weighted mean over the accepted updates, or `merge`'s result.
            memory: What the rule kept for this array; zeros in the first round.
            round_number: Counted from 0.

        Returns:
            The new array and the new memory; by default the mean itself.
        """
        return mean, {}

    def choose(self, distances: Array) -> list[int]:
        """Which updates to merge, by the squared distances (n, n) among them; all by default."""
        return list(range(len(distances)))

    def merge(self, values: Sequence[Array]) -> Array:
        """One array from all chosen updates; only asked where `needs_every_update`."""
        raise TypeError(f"{type(self).__name__} works on the running mean.")
