"""Names of targets: GTV, CTV, PTV and ITV with kind, number, dose and side, as TG-263 writes them."""

import re
from dataclasses import dataclass

from consilium.standards.words import HELPERS, LEFT, LETTER_SIDES, NOISE, RIGHT, SIDE_OF, fold, word_set

TARGET = re.compile(r"(?<![a-z])([lr]?)(igtv|ictv|gtv|ctv|ptv|itv)s?")
GY = re.compile(r"(\d{1,2}(?:[.,]\d{1,2})?)\s*gy")
CGY = re.compile(r"(?<!\d)(\d{4})(?!\d)\s*(?:cgy)?")
BARE_GY = re.compile(r"(?<![\d.,])([2-8]\d(?:[.,]\d{1,2})?)(?![\d.,]*\s*(?:mm|cm|%))(?![\d])")
LEVELS = {"high": "High", "hoch": "High", "mid": "Mid", "int": "Mid", "low": "Low", "lr": "Low", "hr": "High"}
NODES = word_set(
    """
    n ln lns node nodes nodal nodule lymph lymphe lymphknoten lk ganglion ganglions ganglios klier
    klieren linfonodi lymphatics gg gl adp neck hals
    """
)
PRIMARY = word_set(
    """
    p t prim primary primaire primario primar tumor tumour tumeur prostate
    """
)
MIN_CGY, MAX_CGY = 1000, 9000


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a target's name says; ``leftover`` are words that it was not told by."""

    kind: str
    classifier: str
    number: str
    dose_cgy: int | None
    level: str
    side: str | None
    leftover: tuple[str, ...]
    contradictory: bool

    @property
    def name(self) -> str:
        """TG-263: kind, classifier and number, then dose or level; a side last (our own addition)."""
        parts = [f"{self.kind}{self.classifier}{self.number}"]
        parts += [str(self.dose_cgy)] if self.dose_cgy else []
        parts += [self.level] if self.level else []
        parts += [self.side] if self.side else []
        return "_".join(parts)


def read_target(original: str) -> Target | None:
    """The target that ``original`` names; None if it names none, or a structure made from one."""
    text = fold(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=TV)(?=[NPT](?![a-z]))", " ", original))
    found = TARGET.search(text)
    if found is None or len(TARGET.findall(text)) > 1:
        return None
    sides = {LETTER_SIDES[found[1]]} if found[1] else set()
    rest = f"{text[: found.start()]} {text[found.end() :]}"
    rest, dose = _take_dose(rest)
    words = re.findall(r"[a-z]+|\d+", rest)
    classifier, number, level, leftover = "", "", "", []
    for word in words:
        if word in SIDE_OF or word in LETTER_SIDES:
            sides.add(SIDE_OF.get(word) or LETTER_SIDES[word])
        elif word in NODES:
            classifier = "n"
        elif word in PRIMARY and not classifier:
            classifier = "p"
        elif word in LEVELS:
            level = LEVELS[word]
        elif word.isdigit() and len(word) == 1 and not number:
            number = word
        elif word in {"gy", "cgy"} or word in NOISE:
            continue
        else:
            leftover.append(word)
    if set(leftover) & HELPERS:
        return None
    return Target(
        kind=found[2].upper(),
        classifier=classifier,
        number=number,
        dose_cgy=dose,
        level=level,
        side=sides.pop() if len(sides) == 1 else None,
        leftover=tuple(leftover),
        contradictory=sides >= {LEFT, RIGHT},
    )


def _take_dose(text: str) -> tuple[str, int | None]:
    """The text without its dose, and the dose in cGy; a bare number of two digits is Gy."""
    for pattern, scale in ((GY, 100.0), (CGY, 1.0), (BARE_GY, 100.0)):
        found = pattern.search(text)
        if found:
            dose = round(float(found[1].replace(",", ".")) * scale)
            if MIN_CGY <= dose <= MAX_CGY:
                return f"{text[: found.start()]} {text[found.end() :]}", dose
    return text, None
