"""How well readers agree with one another, and a model with them, on the same thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from consilium.errors import GeometryError
from consilium.metrics.overlap import dice
from consilium.types import Mask


@dataclass(frozen=True, kw_only=True)
class ReaderAgreement:
    """Agreement on one structure or nodule of one case.

    Attributes:
        among_readers: Mean Dice over all pairs of readers; NaN for fewer than two.
        with_model: Mean Dice of the model with each reader; NaN without a model or a reader.
        pairs: Number of pairs behind ``among_readers``.
        readers: Number of readers.
    """

    among_readers: float
    with_model: float
    pairs: int
    readers: int


def compute_reader_agreement(readers: Mapping[str, Mask], prediction: Mask | None = None) -> ReaderAgreement:
    """Compare each reader with each other, and the model with each reader.

    Both figures are means of Dice between two contours, so they may stand side by side: a model that reaches
    ``among_readers`` agrees with a reader as well as another reader does.

    Args:
        readers: Reader → (Z, Y, X) bool. A reader who looked and saw nothing has an empty mask; one who did
            not look is left out.
        prediction: The model's mask; an empty one is a miss and counts 0.

    Returns:
        The means; pairs of two empty masks measure nothing and do not count.

    Raises:
        GeometryError: If the masks are not of one shape.

    Example:
        >>> import numpy as np
        >>> a, b = np.array([[[1, 1, 0]]], bool), np.array([[[0, 1, 1]]], bool)
        >>> compute_reader_agreement({"a": a, "b": b}, prediction=a).among_readers
        0.5
    """
    masks = [*readers.values(), *([] if prediction is None else [prediction])]
    shapes = {mask.shape for mask in masks}
    if len(shapes) > 1:
        raise GeometryError(f"readers: masks must lie on one grid; found shapes {sorted(shapes)}.")
    among = [dice(a, b) for a, b in combinations(readers.values(), 2)]
    with_model = [] if prediction is None else [dice(mask, prediction) for mask in readers.values()]
    return ReaderAgreement(
        among_readers=_mean(among),
        with_model=_mean(with_model),
        pairs=int(np.isfinite(among).sum()),
        readers=len(readers),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
