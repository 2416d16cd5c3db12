"""What the routes about one dataset need: its images, decisions and reasons to look; and who was meant."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.review.attention import Attention
from consilium.review.corrections import complete_corrections, content_of
from consilium.review.images import Images
from consilium.review.store import DecisionStore, Recorded, Verdict

Export = Callable[[Dataset, Case, dict[str, str], str], Path]
"""``export(dataset, case, structure -> reader, note) -> file written``; given by whoever wires the page."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """One dataset under review."""

    dataset: Dataset
    store: DecisionStore
    images: Images
    attention: Attention
    export: Export

    def case(self, case_id: str) -> Case:
        """A case; only those of this dataset exist.

        Raises:
            HTTPException: 404 for any other.
        """
        if case_id not in self.dataset.case_ids:
            raise HTTPException(404, "case: must be one of this dataset; there is none of this id.")
        return self.dataset.case(case_id)


def open_desk(dataset: Dataset, export: Export) -> Desk:
    """Open the decisions, complete what a kill interrupted, and begin to look for what needs a look."""
    images = Images(dataset)
    store = DecisionStore(dataset.folder / "review" / "decisions.sqlite")
    complete_corrections(dataset, store)
    attention = Attention(dataset, look_at=images.open)
    attention.start()
    return Desk(dataset=dataset, store=store, images=images, attention=attention, export=export)


def desk_of(request: Request) -> Desk:
    """The desk of the place in the address.

    Raises:
        HTTPException: 404 where there is no such place, or it has no cases.
    """
    desks: dict[int, Desk] = request.app.state.desks
    number = request.path_params["place"]
    if number not in desks:
        raise HTTPException(404, "cases: there is no dataset of this number among what is shown.")
    return desks[number]


def case_of(request: Request) -> Case:
    """The case in the address."""
    return desk_of(request).case(request.path_params["case_id"])


def structures_of(case: Case) -> list[str]:
    """Structures about which a person can decide: somebody or some model contoured them or found none."""
    return sorted({a.structure for a in case.annotations if a.state is not State.UNKNOWN})


def stands(case: Case, recorded: Recorded) -> bool:
    """Whether the contour that was decided about is still the one in the dataset."""
    decision = recorded.decision
    now = content_of(case.annotation(decision.structure, decision.reader))
    return bool(now) and decision.contour_sha256 in {"", now}


def decided_structures(case: Case, latest: dict[str, Recorded]) -> int:
    """How many of them are decided about, as they are now."""
    return sum(name in latest and stands(case, latest[name]) for name in structures_of(case))


def accepted_readers(latest: dict[str, Recorded]) -> dict[str, str]:
    """Structure -> the reader whose contour was accepted, or the correction that was made of it."""
    return {
        name: recorded.decision.reader
        for name, recorded in latest.items()
        if recorded.decision.verdict is not Verdict.REJECTED
    }
