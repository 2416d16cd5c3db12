"""Which case needs a look: disagreement between contours and volumes that stand out."""

import itertools
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.errors import DataError
from consilium.metrics.overlap import dice
from consilium.types import no_progress

MIN_CASES_FOR_OUTLIERS = 5
OUTLIER_ROBUST_Z = 3.5
"""Iglewicz and Hoaglin 1993: modified z-scores beyond this are outliers."""
MAD_TO_SIGMA = 0.6745


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a structure of a case needs a look; ``score`` from 0 (no need) to 1."""

    structure: str
    message: str
    score: float


def volume_outliers(cases: Iterable[Case]) -> dict[str, list[Reason]]:
    """Case id -> structures whose volume stands out among the dataset's (robust z of the log volume).

    Structures with fewer than `MIN_CASES_FOR_OUTLIERS` volumes give no reason.
    """
    volumes: dict[str, list[tuple[str, float]]] = {}
    for case in cases:
        for structure in case.structures:
            annotation = case.annotation(structure)
            if annotation is not None and annotation.volume_cm3 > 0:
                volumes.setdefault(structure, []).append((case.case_id, annotation.volume_cm3))
    reasons: dict[str, list[Reason]] = {}
    for structure, entries in volumes.items():
        if len(entries) < MIN_CASES_FOR_OUTLIERS:
            continue
        logs = np.log([volume for _, volume in entries])
        middle = float(np.median(logs))
        spread = float(np.median(np.abs(logs - middle))) / MAD_TO_SIGMA
        for (case_id, volume), log in zip(entries, logs, strict=True):
            z = abs(log - middle) / spread if spread > 0 else 0.0
            if z > OUTLIER_ROBUST_Z:
                message = f"{volume:.1f} cm³ where the median is {math.exp(middle):.1f} cm³"
                score = min(1.0, z / (2 * OUTLIER_ROBUST_Z))
                reasons.setdefault(case_id, []).append(
                    Reason(structure=structure, message=message, score=score)
                )
    return reasons


def disagreements(dataset: Dataset, case: Case) -> list[Reason]:
    """Structures with several contours, by the lowest Dice between two of them; kept in the cache folder."""
    reasons = []
    for structure in case.structures:
        found = [a for a in case.annotations if a.structure == structure and a.state is State.CONTOURED]
        compared = [a for a in found if not a.reader.startswith("agreement-")]
        worst: tuple[float, str, str] | None = None
        for one, other in itertools.combinations(compared, 2):
            value = _cached_dice(dataset, case, one, other)
            if not math.isnan(value) and (worst is None or value < worst[0]):
                worst = (value, one.reader, other.reader)
        if worst is not None:
            message = f"Dice {worst[0]:.2f} between {worst[1]} and {worst[2]}"
            reasons.append(Reason(structure=structure, message=message, score=1.0 - worst[0]))
    return reasons


class Attention:
    """The reasons of every case, filled in the background so that the list opens at once.

    Args:
        dataset: To look through.
        look_at: Called with every case, e.g. to fill the cache before somebody opens it.
    """

    def __init__(self, dataset: Dataset, *, look_at: Callable[[Case], object] = lambda case: None) -> None:
        self._dataset = dataset
        self._look_at = look_at
        self._reasons: dict[str, list[Reason]] = {}
        self._pending: set[str] = set(dataset.case_ids)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to compute; returns at once."""
        self._thread = threading.Thread(target=self.compute, daemon=True)
        self._thread.start()

    def compute(self, progress: Any = no_progress) -> None:
        """Fill in every case; a case that cannot be read is shown as such."""
        cases = list(self._dataset.cases())
        outliers = volume_outliers(cases)
        for done, case in enumerate(cases, start=1):
            try:
                self._look_at(case)
                reasons = outliers.get(case.case_id, []) + disagreements(self._dataset, case)
            except DataError as error:
                reasons = [Reason(structure="", message=str(error), score=1.0)]
            self._reasons[case.case_id] = sorted(reasons, key=lambda r: -r.score)
            self._pending.discard(case.case_id)
            progress("comparing contours", done, len(cases))

    def reasons(self, case_id: str) -> list[Reason] | None:
        """Reasons of a case, the strongest first; None while they are being computed."""
        return None if case_id in self._pending else self._reasons.get(case_id, [])

    def score(self, case_id: str) -> float:
        """The strongest reason's score; 0 while unknown or without any."""
        reasons = self.reasons(case_id)
        return reasons[0].score if reasons else 0.0


def _cached_dice(dataset: Dataset, case: Case, one: Annotation, other: Annotation) -> float:
    first, second = sorted([str(one.content_sha256), str(other.content_sha256)])
    path: Path = dataset.cache_folder / "review" / f"{first[:24]}-{second[:24]}.json"
    if path.exists():
        return float(read_json(path)["dice"])
    masks = [dataset.load_mask(case, a.structure, a.reader) for a in (one, other)]
    value = dice(masks[0], masks[1])
    if not math.isnan(value):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"dice": value})
    return value
