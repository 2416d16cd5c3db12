"""The first page where there are several places: what each is, how it stands, and what to do first."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.review.desk import Desk, decided_structures, structures_of
from consilium.review.federation_page import federation_summary
from consilium.review.places import Kind, Place
from consilium.review.run_page import run_summary

WORTH_A_LOOK = 0.5
SUBTITLE = re.compile('<p class="subtitle">([^<]*)</p>')


@dataclass(frozen=True, kw_only=True)
class Card:
    """One place on the first page; ``open`` contoured structures are there, ``decided`` of them done."""

    name: str
    kind: str
    link: str
    says: str
    action: str
    open: int = 0
    decided: int = 0


def home_cards(places: Sequence[Place], desks: Mapping[int, Desk]) -> list[Card]:
    """One card per place, in order."""
    return [_card(number, place, desks.get(number)) for number, place in enumerate(places)]


def _card(number: int, place: Place, desk: Desk | None) -> Card:
    link = f"/place/{number}/"
    if desk is not None:
        return _cases_card(place, link, desk)
    if place.kind is Kind.RUN:
        says, kind = run_summary(place.folder), "training run"
    elif place.kind is Kind.FEDERATION:
        says, kind = federation_summary(place.folder), "federation"
    elif place.kind is Kind.PAGE:
        says, kind = _subtitle(place.folder), "page"
    else:
        says, kind = place.problem, "contours"
    return Card(name=place.name, kind=kind, link=link, says=says, action="Look")


def _subtitle(page: Path) -> str:
    """What a page of ours says below its title."""
    try:
        found = SUBTITLE.search(page.read_text(encoding="utf-8"))
    except OSError:
        return "no longer there, or not to be read"
    return html.unescape(found[1]) if found else ""


def _cases_card(place: Place, link: str, desk: Desk) -> Card:
    latest = desk.store.latest_of_all()
    looks = desk.attention.looks()
    count = sum(len(structures_of(look.case)) for look in looks)
    decided = sum(decided_structures(look.case, latest.get(look.case.case_id, {})) for look in looks)
    flagged = sum(look.score >= WORTH_A_LOOK for look in looks)
    cases = "1 case" if len(looks) == 1 else f"{len(looks)} cases"
    says = f"{cases}, {count} contoured structures" + (
        "; 1 needs a look" if flagged == 1 else f"; {flagged} need a look" if flagged else ""
    )
    if place.kind is Kind.CONTOURED:
        case = looks[0].case
        drawn = len({a.structure for a in case.annotations if a.proposed and a.voxels})
        says = f"a model proposes {drawn} contours for an image; it looked for {count} structures"
        link = f"{link}case/{case.case_id}"
    return Card(
        name=place.name,
        kind="contoured image" if place.kind is Kind.CONTOURED else "dataset",
        link=link,
        says=says,
        action="Look and decide",
        open=count,
        decided=decided,
    )
