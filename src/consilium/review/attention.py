"""Which case needs a look: a model in doubt, disagreement between contours, volumes that stand out."""

import itertools
import math
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.cases.files import read_json, write_json
from consilium.errors import DataError
from consilium.metrics.overlap import dice
from consilium.types import Progress, no_progress

MIN_CASES_FOR_OUTLIERS = 5
OUTLIER_ROBUST_Z = 3.5
"""Iglewicz and Hoaglin 1993: modified z-scores beyond this are outliers."""
MAD_TO_SIGMA = 0.6745


NOT_FOUND_SCORE = 0.9
WORTH_SAYING = 0.1
"""Doubt and disagreement (one minus Dice) below this need no words."""


class Kind(StrEnum):
    """Why something needs a look."""

    DOUBT = "doubt"
    DISAGREEMENT = "disagreement"
    VOLUME = "volume"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a structure of a case needs a look.

    Args:
        structure: Name; empty where the whole case is meant.
        message: What was found, with values.
        score: From 0 (no need) to 1.
        kind: Why.
        readers: Whose contours are meant: one, or the two that disagree.
        value: The doubt, one minus the Dice, or the ratio of the volume to the median.
    """

    structure: str
    message: str
    score: float
    kind: Kind = Kind.UNREADABLE
    readers: tuple[str, ...] = ()
    value: float = math.nan


NO_REASON = Reason(structure="", message="", score=0.0)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the list shows of one case: its record, and its reasons; None while they are being computed."""

    case: Case
    reasons: tuple[Reason, ...] | None = None

    @property
    def score(self) -> float:
        """The strongest reason's; 0 while unknown or without any."""
        return max((reason.score for reason in self.reasons or ()), default=0.0)

    @property
    def spoken(self) -> tuple[Reason, ...]:
        """The reasons that are worth words, the strongest first."""
        return tuple(r for r in self.reasons or () if r.score >= WORTH_SAYING)

    def strongest(self, kind: Kind) -> Reason | None:
        """The strongest reason of a kind, if there is one."""
        return max((r for r in self.reasons or () if r.kind is kind), key=lambda r: r.score, default=None)


def volume_outliers(cases: Iterable[Case]) -> dict[str, list[Reason]]:
    """Case id -> contours whose volume stands out among the dataset's (robust z of the log volume).

    Structures with fewer than `MIN_CASES_FOR_OUTLIERS` volumes give no reason.
    """
    volumes: dict[str, list[tuple[str, str, float]]] = {}
    for case in cases:
        for a in case.annotations:
            if a.volume_cm3 > 0 and not a.derived:
                volumes.setdefault(a.structure, []).append((case.case_id, a.reader, a.volume_cm3))
    reasons: dict[str, list[Reason]] = {}
    for structure, entries in volumes.items():
        if len(entries) < MIN_CASES_FOR_OUTLIERS:
            continue
        logs = np.log([volume for *_, volume in entries])
        middle = float(np.median(logs))
        spread = float(np.median(np.abs(logs - middle))) / MAD_TO_SIGMA
        strongest: dict[str, Reason] = {}
        for (case_id, reader, volume), log in zip(entries, logs, strict=True):
            z = abs(log - middle) / spread if spread > 0 else 0.0
            if z > OUTLIER_ROBUST_Z:
                message = f"{volume:.1f} cm³ where the median is {math.exp(middle):.1f} cm³"
                score = min(1.0, z / (2 * OUTLIER_ROBUST_Z))
                strongest[case_id] = max(
                    strongest.get(case_id, NO_REASON),
                    Reason(
                        structure=structure,
                        message=message,
                        score=score,
                        kind=Kind.VOLUME,
                        readers=(reader,),
                        value=volume / math.exp(middle),
                    ),
                    key=lambda reason: reason.score,
                )
        for case_id, reason in strongest.items():
            reasons.setdefault(case_id, []).append(reason)
    return reasons


def doubts(case: Case) -> list[Reason]:
    """Structures that a model found with doubt, or did not find at all."""
    reasons = []
    several = len({a.reader for a in case.annotations if a.proposed}) > 1
    for a in case.annotations:
        by = f" by {a.reader}" if several else ""
        who: dict[str, Any] = {"structure": a.structure, "kind": Kind.DOUBT, "readers": (a.reader,)}
        if a.proposed and a.state is State.ABSENT:
            found = f"not found{by}"
            reasons.append(Reason(message=found, score=NOT_FOUND_SCORE, value=1.0, **who))
        elif a.doubt is not None:
            said = f"Dice expected{by}: {1 - a.doubt:.2f}"
            reasons.append(Reason(message=said, score=a.doubt, value=a.doubt, **who))
    return reasons


def disagreements(dataset: Dataset, case: Case) -> list[Reason]:
    """Structures with several contours, by the lowest Dice between two of them; kept in the cache folder."""
    reasons = []
    for structure in sorted({a.structure for a in case.annotations}):
        found = [a for a in case.annotations if a.structure == structure and a.state is State.CONTOURED]
        compared = [a for a in found if not a.derived]
        worst: tuple[float, str, str] | None = None
        for one, other in itertools.combinations(compared, 2):
            value = _cached_dice(dataset, case, one, other)
            if not math.isnan(value) and (worst is None or value < worst[0]):
                worst = (value, one.reader, other.reader)
        if worst is not None:
            message = f"Dice {worst[0]:.2f} between {worst[1]} and {worst[2]}"
            reasons.append(
                Reason(
                    structure=structure,
                    message=message,
                    score=1.0 - worst[0],
                    kind=Kind.DISAGREEMENT,
                    readers=worst[1:],
                    value=1.0 - worst[0],
                )
            )
    return reasons


class Attention:
    """What the list shows of every case, filled in the background so that the list opens at once.

    Args:
        dataset: To look through.
        look_at: Called with every case, e.g. to fill the cache before somebody opens it.
    """

    def __init__(self, dataset: Dataset, *, look_at: Callable[[Case], object] = lambda case: None) -> None:
        self._dataset = dataset
        self._look_at = look_at
        self._looks: dict[str, Look] = {case.case_id: Look(case=case) for case in dataset.cases()}
        self._outliers = volume_outliers(look.case for look in self._looks.values())
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to compute; returns at once."""
        self._thread = threading.Thread(target=self.compute, daemon=True)
        self._thread.start()

    def compute(self, progress: Progress = no_progress) -> None:
        """Fill in every case: first what needs no other image, then what fills the cache."""
        cases = [look.case for look in self._looks.values()]
        for done, case in enumerate(cases, start=1):
            self.renew(case)
            progress("comparing contours", done, len(cases))
        for case in cases:
            with suppress(DataError):
                self._look_at(case)

    def renew(self, case: Case) -> None:
        """Look at one case again, e.g. after a correction; one that cannot be read is shown as such."""
        try:
            reasons = self._outliers.get(case.case_id, []) + doubts(case) + disagreements(self._dataset, case)
        except DataError as error:
            reasons = [Reason(structure="", message=str(error), score=1.0)]
        found = tuple(sorted(reasons, key=lambda r: -r.score))
        self._looks[case.case_id] = Look(case=case, reasons=found)

    def renew_soon(self, case: Case) -> None:
        """`renew` in the background, for whoever must answer at once."""
        self._looks[case.case_id] = Look(case=case)
        threading.Thread(target=self.renew, args=(case,), daemon=True).start()

    def looks(self) -> list[Look]:
        """One of every case that the dataset holds now, in the order of their ids."""
        ids = self._dataset.case_ids
        for case_id in set(ids) - self._looks.keys():
            self.renew(self._dataset.case(case_id))
        return [self._looks[case_id] for case_id in ids]

    def look(self, case_id: str) -> Look | None:
        """One case's; None if it came into the dataset after the page was started."""
        return self._looks.get(case_id)


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
