"""Names: a table of spellings from hospitals and public collections, held apart from the mapper's list."""

import csv
from pathlib import Path

import pytest

from consilium.standards.catalogue import load_catalogue
from consilium.standards.names import CONFIDENT, propose_name

with (Path(__file__).parent / "spellings.csv").open(encoding="utf-8", newline="") as file:
    TABLE = [(row["spelling"], row["expected"] or None) for row in csv.DictReader(file)]


def side_of(name: str | None) -> str | None:
    parts = (name or "").replace("-", "_").split("_")
    return "L" if "L" in parts else "R" if "R" in parts else None


def test_nine_of_ten_spellings_are_named_rightly_at_the_first_guess() -> None:
    assert len(TABLE) >= 300
    assert len({spelling for spelling, _ in TABLE}) == len(TABLE)
    wrong = [(s, e, propose_name(s).name) for s, e in TABLE if propose_name(s).name != e]
    assert len(wrong) <= 0.1 * len(TABLE), wrong


def test_no_side_is_confidently_wrong() -> None:
    for spelling, expected in TABLE:
        proposal = propose_name(spelling)
        if proposal.confidence >= CONFIDENT:
            assert side_of(proposal.name) == side_of(expected), proposal


def test_confident_proposals_are_right() -> None:
    wrong = [
        (p.original, p.name, expected)
        for p, expected in ((propose_name(s), e) for s, e in TABLE)
        if p.confidence >= CONFIDENT and p.name != expected
    ]
    assert len(wrong) <= 0.01 * len(TABLE), wrong


PAIRED = [s for s in load_catalogue().structures if s.paired]


@pytest.mark.parametrize("structure", PAIRED, ids=lambda s: s.name)
def test_every_paired_structure_keeps_its_side_in_every_language(structure) -> None:
    words = {"L": ["left", "Lt", "links", "li", "gauche", "izq", "sinistra", "L"]}
    words["R"] = ["right", "Rt", "rechts", "re", "droite", "der", "destra", "R"]
    for side, spellings in words.items():
        for word in spellings:
            for spelling in (f"{word} {structure.name}", f"{structure.name}_{word}"):
                proposal = propose_name(spelling)
                assert proposal.name == f"{structure.name}_{side}", spelling
                assert proposal.confidence >= CONFIDENT, spelling


@pytest.mark.parametrize("structure", PAIRED, ids=lambda s: s.name)
def test_a_missing_or_contradictory_side_is_never_confident(structure) -> None:
    assert propose_name(f"left {structure.name} right").confidence < CONFIDENT
    single = propose_name(structure.name)
    assert single.confidence < CONFIDENT or single.name == structure.plural


@pytest.mark.parametrize("structure", load_catalogue().structures, ids=lambda s: s.name)
def test_a_standard_name_stays_as_it_is(structure) -> None:
    assert propose_name(structure.name).name in {structure.name, structure.plural}
    if structure.plural:
        assert propose_name(structure.plural).name == structure.plural


@pytest.mark.parametrize("nonsense", ["", "   ", "!!!", "42", "Struktur1", "xqzt", "日本語", "a" * 64])
def test_what_is_not_understood_gets_no_name(nonsense: str) -> None:
    assert propose_name(nonsense).name is None
    assert propose_name(nonsense).confidence == 0


def test_a_misspelling_is_proposed_but_never_confident() -> None:
    for spelling in ("Bladdre", "Rectmu", "Oesophgus", "Lft Partoid", "brianstem"):
        proposal = propose_name(spelling)
        assert proposal.name is not None
        assert proposal.confidence < CONFIDENT


def test_the_same_proposal_whatever_the_case() -> None:
    for spelling, _ in TABLE:
        if " " in spelling or "_" in spelling:
            assert side_of(propose_name(spelling.upper()).name) == side_of(
                propose_name(spelling.lower()).name
            )
