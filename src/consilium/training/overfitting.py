"""Watch validation against training Dice: see over-fitting, lower the rate or stop, remember where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RISE = 0.01
"""Training Dice must have risen by this since the best validation."""

FALL = 0.01
"""Validation Dice, averaged over `PATIENCE` validations, must lie this far below its best such average."""

PATIENCE = 3
"""Validations in a row that are averaged, and that must pass between two actions."""

LOWER_BY = 0.3
LOWERINGS = 2
"""After so many lowerings of the rate the next alarm stops the training."""


@dataclass
class OverfittingWatch:
    """The watch's memory; `observe` is its one rule.

    Attributes:
        action: ``"lower"``, ``"stop"`` or ``"off"``.
        history: (step, training Dice, validation Dice) of every validation.
        marks: Steps at which over-fitting was seen.
        rate_factor: What the learning rate is multiplied by.
        stopped: Whether training should end.
    """

    action: str = "lower"
    history: list[tuple[int, float, float]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    rate_factor: float = 1.0
    stopped: bool = False

    def observe(self, step: int, training_dice: float, validation_dice: float) -> bool:
        """Take in one validation; returns whether over-fitting was seen at this one.

        Over-fitting is seen when both hold, on averages over the last `PATIENCE` validations: validation Dice
        lies `FALL` below its best average, and training Dice lies `RISE` above where it was at that best.
        """
        if training_dice != training_dice or validation_dice != validation_dice:
            return False
        self.history.append((step, float(training_dice), float(validation_dice)))
        if self.action == "off" or not self._is_overfitting(step):
            return False
        self.marks.append(step)
        if self.action == "stop" or len(self.marks) > LOWERINGS:
            self.stopped = True
        else:
            self.rate_factor *= LOWER_BY
        return True

    def _is_overfitting(self, step: int) -> bool:
        means = self._averages()
        if len(means) < 2:
            return False
        if self.marks and sum(1 for s, _, _ in self.history if s > self.marks[-1]) < PATIENCE:
            return False
        training, validation = means[-1]
        best_training, best_validation = max(means[:-1], key=lambda pair: pair[1])
        return validation <= best_validation - FALL and training >= best_training + RISE

    def _averages(self) -> list[tuple[float, float]]:
        """(training, validation) Dice averaged over every `PATIENCE` validations in a row."""
        windows = [self.history[k : k + PATIENCE] for k in range(len(self.history) - PATIENCE + 1)]
        return [(sum(t for _, t, _ in w) / PATIENCE, sum(v for _, _, v in w) / PATIENCE) for w in windows]

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` gives an equal object."""
        return {**vars(self), "history": [list(entry) for entry in self.history], "marks": list(self.marks)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "OverfittingWatch":
        """The inverse of `to_json`."""
        history = [(int(s), float(t), float(v)) for s, t, v in record["history"]]
        return cls(**{**record, "history": history, "marks": [int(s) for s in record["marks"]]})
