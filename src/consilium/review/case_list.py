"""The list of a dataset's cases: what needs a look first, sortable by every reason, a page at a time."""

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from consilium.review.attention import Kind, Look, Reason
from consilium.review.desk import decided_structures, desk_of, structures_of
from consilium.review.places import Place
from consilium.review.rendering import render

CASES_A_PAGE = 60
SHOWN_REASONS = 3
COLUMNS = {
    "attention": ("Needs a look", "whatever stands out most"),
    "doubt": ("Doubt", "what a model expects to be wrong: one minus the Dice it expects"),
    "disagreement": ("Dice", "lowest overlap between two contours of one structure"),
    "volume": ("Volume", "volume as a multiple of the dataset's median, where it stands out"),
    "decided": ("Decided", "structures decided about"),
    "case": ("Case", "pseudonym"),
}
"""Order -> heading and what it says."""
FIGURES = ("doubt", "disagreement", "volume")
"""Columns that are left out where no case has a figure."""


def render_cases(request: Request, place: Place) -> str:
    """The list, sorted and paged as the address asks."""
    desk = desk_of(request)
    order = request.query_params.get("sort", "attention")
    order = order if order in COLUMNS else "attention"
    latest = desk.store.latest_of_all()
    rows = [_row(look, latest.get(look.case.case_id, {})) for look in desk.attention.looks()]
    rows.sort(key=SORTS[order])
    pages = max(1, math.ceil(len(rows) / CASES_A_PAGE))
    asked = request.query_params.get("page", "1")
    page = min(pages, max(1, int(asked))) if asked.isdecimal() else 1
    return render(
        request,
        "cases.html",
        place=place,
        number=request.path_params["place"],
        rows=rows[(page - 1) * CASES_A_PAGE : page * CASES_A_PAGE],
        order=order,
        columns=COLUMNS,
        shown={key for key in FIGURES if any(row[key] is not None for row in rows)},
        page=page,
        pages=pages,
        total=len(rows),
        structures=desk.dataset.structures,
        done=sum(row["decided"] for row in rows),
        open=sum(row["structures"] for row in rows),
        waiting=any(row["look"].reasons is None for row in rows),
    )


def _row(look: Look, latest: dict[str, Any]) -> dict[str, Any]:
    strongest = {kind: look.strongest(kind) for kind in Kind}
    return {
        "look": look,
        "case": look.case,
        "image": "×".join(map(str, reversed(look.case.image.grid.shape_zyx))),
        "structures": len(structures_of(look.case)),
        "decided": decided_structures(look.case, latest),
        "reasons": [_linked(reason) for reason in look.spoken[:SHOWN_REASONS]],
        "more": max(0, len(look.spoken) - SHOWN_REASONS),
        "doubt": _value(strongest[Kind.DOUBT]),
        "disagreement": _value(strongest[Kind.DISAGREEMENT]),
        "volume": _value(strongest[Kind.VOLUME]),
    }


def _value(reason: Reason | None) -> float | None:
    return None if reason is None else reason.value


def _linked(reason: Reason) -> tuple[Reason, str]:
    """A reason, and the query with which its case opens at the slice that is meant."""
    names = zip(("reader", "other"), reason.readers, strict=False)
    return reason, urlencode({"structure": reason.structure, **dict(names)})


def _largest_first(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: (-(row[field] if row[field] is not None else -1.0), row["case"].case_id)


SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "attention": lambda row: (
        row["structures"] > 0 and row["decided"] == row["structures"],
        -row["look"].score,
        row["case"].case_id,
    ),
    "doubt": _largest_first("doubt"),
    "disagreement": _largest_first("disagreement"),
    "volume": lambda row: (-abs(math.log(row["volume"] or 1.0)), row["case"].case_id),
    "decided": lambda row: (row["decided"] / max(1, row["structures"]), -row["look"].score),
    "case": lambda row: row["case"].case_id,
}
