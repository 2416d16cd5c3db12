"""The structures that names are mapped to: TG-263 names, synonyms in six languages, SNOMED codes."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from consilium.standards.words import LEFT, RIGHT, STOP_WORDS, split_words, word_set


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One entry.

    Args:
        name: Of TG-263, without side.
        paired: Whether it has a left and a right one.
        plural: TG-263's name of both together; "" unless paired.
        snomed: SNOMED CT code of the unsided structure; "" where none is sure.
        meaning: The code's meaning.
        synonyms: Folded words, joined; with whether the synonym means several.
    """

    name: str
    paired: bool
    plural: str
    snomed: str
    meaning: str
    synonyms: tuple[tuple[str, bool], ...]

    def sided(self, side: str | None) -> str:
        """Its name with a side, ``LEFT`` or ``RIGHT``; without one, the plain name."""
        return f"{self.name}_{side}" if side in (LEFT, RIGHT) else self.name


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All structures and how to find them by joined words, whatever their order."""

    structures: Sequence[Structure]
    by_key: Mapping[str, tuple[Structure, bool]]
    by_words: Mapping[tuple[str, ...], tuple[Structure, bool]]
    by_name: Mapping[str, Structure]


@cache
def load_catalogue() -> Catalogue:
    """Read ``structures.csv``; the first structure that claims a synonym keeps it."""
    text = resources.files("consilium.standards").joinpath("structures.csv").read_text("utf-8")
    structures: list[Structure] = []
    by_key: dict[str, tuple[Structure, bool]] = {}
    by_words: dict[tuple[str, ...], tuple[Structure, bool]] = {}
    for row in csv.DictReader(text.splitlines()):
        lists = [_words(synonym) for synonym in [row["name"], row["plural"], *row["synonyms"].split(";")]]
        keys = ["".join(words) for words in lists if words]
        plural_name = "".join(_words(row["plural"]))
        paired = row["paired"] == "yes"
        marked = tuple((key, paired and (key == plural_name or _is_plural(key, keys))) for key in keys)
        structure = Structure(
            name=row["name"],
            paired=paired,
            plural=row["plural"],
            snomed=row["snomed"],
            meaning=row["meaning"],
            synonyms=marked,
        )
        structures.append(structure)
        for words, (key, several) in zip([words for words in lists if words], marked, strict=True):
            by_key.setdefault(key, (structure, several))
            by_words.setdefault(tuple(sorted(words)), (structure, several))
    by_name = {structure.name: structure for structure in structures}
    return Catalogue(structures=structures, by_key=by_key, by_words=by_words, by_name=by_name)


def _words(text: str) -> list[str]:
    return [word for word in split_words(text) if word not in STOP_WORDS]


IRREGULAR_PLURALS = word_set(
    """
    yeux occhi ojos ogen atria ovaries hufttkopfe huftkopfe femurkopfe testifemorali testefemorali
    heupkoppen femurkoppen polmoni reni humeri hippocampi cochleae cabezasfemorales tetesfemorales
    parotidi svs ippocampi cristallini nerviottici nervioptico cosce nieren lungen augen linsen longen
    """
)


def _is_plural(key: str, keys: Sequence[str]) -> bool:
    shorter = {other for other in keys if 3 <= len(other) < len(key)}
    endings = ("s", "n", "en", "es", "e")
    regular = any(key.endswith(end) and key[: -len(end)] in shorter for end in endings)
    return regular or key in IRREGULAR_PLURALS
