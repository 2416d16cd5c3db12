"""From a hospital's spelling of a structure to its TG-263 name, with a confidence and never silently."""

import re
from dataclasses import dataclass, replace

from consilium.standards.catalogue import Catalogue, Structure, load_catalogue
from consilium.standards.targets import read_target
from consilium.standards.words import (
    BOTH,
    HELPERS,
    LETTER_SIDES,
    NOISE,
    ROMANCE_SIDES,
    SIDE_OF,
    STOP_WORDS,
    WEAK_SIDES,
    fold,
    split_words,
)

CONFIDENT = 0.8
"""From here on a proposal may be accepted without looking at each; below, a person must look."""

MINUS = re.compile(
    r"^(.*?[a-z)\]0-9])\s*(?:[-_]\s*|\s+(?:minus|ohne|sans|without|hors)\s+|\s-)(?:all\s+)?([pcgi]tv)s?\d*\S*.*$",
    re.IGNORECASE,
)
MARGIN = re.compile(
    r"(?:\+\s*(\d{1,2})\s*(?:mm)?|prv\D{0,2}0?(\d{1,2})(?:\s*mm)?|(\d{1,2})\s*mm)", re.IGNORECASE
)
SHRUNK = re.compile(r"-\s*\d+\s*mm", re.IGNORECASE)
BOTH_SIDES = re.compile(r"(?<![a-z])(?:l|lt|li|left)\s*[+&/]\s*(?:r|rt|re|right)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a name is proposed to become.

    Args:
        original: As the hospital writes it.
        name: TG-263 name; None if nothing was recognised, or if it is no organ or target (a ring, a marker).
        confidence: From 0 to 1; `CONFIDENT` and above may be accepted together.
        reason: Why, in a few words.
    """

    original: str
    name: str | None
    confidence: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Side:
    side: str | None
    certainty: float
    words: tuple[str, ...]
    contradictory: bool = False
    both: bool = False


def propose_name(original: str) -> Proposal:
    """The TG-263 name that ``original`` most likely means.

    Understands sides, targets with dose, planning-risk volumes, structures minus a target, site and tool
    prefixes, misspellings, and English, French, Dutch, German, Spanish and Italian words. A side is proposed
    with confidence only where a word says it, and never where the name says both.

    Example:
        >>> propose_name("Parotis re").name
        'Parotid_R'
        >>> propose_name("PTV 60 Gy").name
        'PTV_6000'
    """
    minus = MINUS.match(original)
    if minus and not re.fullmatch(r"[\W\dlrLR]*", minus[1]):
        base = _propose_structure(minus[1])
        if base.name is not None and not _says(minus[1], {"ring", "prv"}):
            confidence = min(base.confidence, 0.85)
            return replace(
                base, original=original, name=f"{base.name}-{minus[2].upper()}", confidence=confidence
            )
    target = read_target(original)
    if target is not None:
        if target.contradictory:
            return Proposal(original=original, name=target.name, confidence=0.3, reason="says both sides")
        confidence = 0.95 if not target.leftover else 0.5
        reason = "target" if not target.leftover else f"target; not understood: {' '.join(target.leftover)}"
        return Proposal(original=original, name=target.name, confidence=confidence, reason=reason)
    proposal = _propose_structure(original)
    return replace(proposal, original=original)


def find_sure_name(original: str) -> str | None:
    """The proposed name if it may be taken without looking; None where a person must look.

    Example:
        >>> find_sure_name("Blase"), find_sure_name("Not Bladder")
        ('Bladder', None)
    """
    proposal = propose_name(original)
    return proposal.name if proposal.confidence >= CONFIDENT else None


def _says(text: str, words: set[str]) -> bool:
    return bool(set(split_words(text)) & words)


def _propose_structure(original: str) -> Proposal:
    text, suffix = _take_margin(BOTH_SIDES.sub(" both ", original))
    words = [word for word in split_words(text) if word not in STOP_WORDS]
    if set(words) & HELPERS or SHRUNK.search(text) or re.search(r"\b[pcgi]tv", fold(original)):
        return _nothing(original, "made for planning, no organ")
    catalogue = load_catalogue()
    whole = _whole_match(words, catalogue)
    if whole is not None:
        return _finish(original, whole, _Side(side=None, certainty=1.0, words=()), 0.97, suffix)
    side = _take_side(words)
    found, confidence, fused = _match(side, catalogue)
    if found is None:
        return _nothing(original, "not recognised")
    return _finish(original, found, fused or side, confidence, suffix)


def _whole_match(words: list[str], catalogue: Catalogue) -> tuple[Structure, bool] | None:
    """An entry that is every word as it stands, e.g. "left anterior descending"."""
    found = catalogue.by_key.get("".join(words)) or catalogue.by_words.get(tuple(sorted(words)))
    return found


def _finish(
    original: str, found: tuple[Structure, bool], side: _Side, confidence: float, suffix: str
) -> Proposal:
    """Put structure and side together; whatever is unsure about the side lowers the confidence."""
    structure, several = found
    if side.contradictory:
        return Proposal(
            original=original, name=structure.name + suffix, confidence=0.3, reason="says both sides"
        )
    if not structure.paired:
        confidence = min(confidence, 0.6) if side.side else confidence
        reason = "has no sides" if side.side else "recognised"
        return Proposal(original=original, name=structure.name + suffix, confidence=confidence, reason=reason)
    if side.side:
        confidence = min(confidence, side.certainty)
        return Proposal(
            original=original,
            name=structure.sided(side.side) + suffix,
            confidence=confidence,
            reason="recognised",
        )
    if several or side.both:
        return Proposal(
            original=original, name=structure.plural + suffix, confidence=confidence, reason="both sides"
        )
    name = structure.name + suffix
    return Proposal(original=original, name=name, confidence=min(confidence, 0.5), reason="side missing")


def _take_side(words: list[str]) -> _Side:
    """The side that the words say, and the words without it."""
    strong = {SIDE_OF[word] for word in words if word in SIDE_OF}
    rest = [word for word in words if word not in SIDE_OF]
    both = any(word in BOTH for word in rest)
    rest = [word for word in rest if word not in BOTH]
    letters = {LETTER_SIDES[word] for word in rest if word in LETTER_SIDES}
    rest = [word for word in rest if word not in LETTER_SIDES]
    said = strong | letters
    if len(said) > 1:
        return _Side(side=None, certainty=0.0, words=tuple(rest), contradictory=True)
    if said:
        certainty = 0.97 if strong else 0.93
        return _Side(side=said.pop(), certainty=certainty, words=tuple(rest), both=both)
    for table, certainty in ((ROMANCE_SIDES, 0.85), (WEAK_SIDES, 0.55)):
        for position in (-1, 0):
            if len(rest) > 1 and rest[position] in table:
                remaining = rest[:-1] if position == -1 else rest[1:]
                return _Side(
                    side=table[rest[position]], certainty=certainty, words=tuple(remaining), both=both
                )
    return _Side(side=None, certainty=1.0, words=tuple(rest), both=both)


def _match(side: _Side, catalogue: Catalogue) -> tuple[tuple[Structure, bool] | None, float, _Side | None]:
    """The structure, how sure it is, and the side if it was hidden in a word."""
    numbers = [word for word in side.words if word.isdigit()]
    words = [word for word in side.words if not word.isdigit()]
    penalty = 0.15 if numbers else 0.0
    found = _whole_match(words, catalogue)
    if found:
        return found, 0.97 - penalty, None
    plain = [word for word in words if word not in NOISE]
    found = _whole_match(plain, catalogue) if plain else None
    if found:
        return found, 0.92 - penalty, None
    if side.side is None and not side.contradictory:
        fused = _fused_side("".join(plain), catalogue)
        if fused:
            structure, hidden = fused
            return structure, 0.9 - penalty, hidden
    span = _longest_span(plain, catalogue)
    if span:
        structure, covered = span
        return structure, (0.65 if covered >= 0.6 else 0.45) - penalty, None
    near = _nearest("".join(plain), catalogue)
    return (near[0], near[1] - penalty, None) if near else (None, 0.0, None)


def _fused_side(word: str, catalogue: Catalogue) -> tuple[tuple[Structure, bool], _Side] | None:
    """A side written together with a paired structure: ``lparotid``, ``parotisli``, ``parotided``."""
    affixes = sorted({**SIDE_OF, **LETTER_SIDES, **ROMANCE_SIDES}.items(), key=lambda item: -len(item[0]))
    for affix, side in affixes:
        candidates = [word[len(affix) :]] if word.startswith(affix) and affix not in ROMANCE_SIDES else []
        candidates += [word[: -len(affix)]] if word.endswith(affix) else []
        for rest in candidates:
            found = catalogue.by_key.get(rest) if len(rest) >= 3 else None
            if found and found[0].paired:
                certainty = 0.9 if len(affix) > 1 else 0.82
                return found, _Side(side=side, certainty=certainty, words=())
    return None


def _longest_span(words: list[str], catalogue: Catalogue) -> tuple[tuple[Structure, bool], float] | None:
    """The longest run of words that is a structure, and the share of letters in it."""
    total = sum(map(len, words)) or 1
    for length in range(len(words) - 1, 0, -1):
        for start in range(len(words) - length + 1):
            key = "".join(words[start : start + length])
            if len(key) >= 3 and key in catalogue.by_key:
                return catalogue.by_key[key], len(key) / total
    return None


def _nearest(word: str, catalogue: Catalogue) -> tuple[tuple[Structure, bool], float] | None:
    """A misspelling: the synonym at the smallest distance, or the only structure that it begins."""
    if len(word) < 4:
        return None
    limit = 1 if len(word) < 8 else 2
    best: dict[str, tuple[int, tuple[Structure, bool]]] = {}
    for key, entry in catalogue.by_key.items():
        if len(key) < 4 or abs(len(key) - len(word)) > limit:
            continue
        distance = _edits(word, key, limit)
        if distance <= limit and distance < best.get(entry[0].name, (limit + 1, entry))[0]:
            best[entry[0].name] = (distance, entry)
    if best:
        ranked = sorted(best.values(), key=lambda item: item[0])
        unique = len(ranked) == 1 or ranked[0][0] < ranked[1][0]
        return ranked[0][1], (0.75 if ranked[0][0] == 1 else 0.6) if unique else 0.4
    begun = {entry[0].name: entry for key, entry in catalogue.by_key.items() if key.startswith(word)}
    return (next(iter(begun.values())), 0.6) if len(begun) == 1 else None


def _edits(a: str, b: str, limit: int) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours between two words, up to ``limit`` + 1."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            cost = min(row[j] + 1, current[j - 1] + 1, row[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        if min(current) > limit:
            return limit + 1
        before, row = row, current
    return row[-1]


def _take_margin(original: str) -> tuple[str, str]:
    """The text without its planning-risk margin, and TG-263's suffix for it (``_PRV05``)."""
    has_prv = re.search(r"prv", original, re.IGNORECASE)
    margin = MARGIN.search(original)
    if not has_prv and (margin is None or margin[1] is None):
        return original, ""
    digits = next((part for part in margin.groups() if part), "") if margin else ""
    text = MARGIN.sub(" ", original)
    text = re.sub(r"prv", " ", text, flags=re.IGNORECASE)
    return text, f"_PRV{int(digits):02d}" if digits else "_PRV"


def _nothing(original: str, reason: str) -> Proposal:
    return Proposal(original=original, name=None, confidence=0.0, reason=reason)
