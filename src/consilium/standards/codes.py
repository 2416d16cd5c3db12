"""SNOMED CT codes of structures and targets, for DICOM SEG segments and RTSTRUCT observations."""

import re
from dataclasses import dataclass

from consilium.standards.catalogue import load_catalogue
from consilium.standards.words import LEFT, RIGHT

SCHEME = "SCT"


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept (DICOM PS3.3 section 8): value, scheme and meaning of at most 64 characters."""

    value: str
    meaning: str
    scheme: str = SCHEME


@dataclass(frozen=True, kw_only=True)
class StructureCode:
    """How a structure is coded (DICOM PS3.3 C.8.20.2, PS3.16 CID 7150 and CID 244).

    Args:
        category: Organ, or a radiotherapy target's morphology.
        kind: What it is, without its side.
        laterality: Left, right or both; None where there is none.
    """

    category: Code
    kind: Code
    laterality: Code | None = None


ORGAN = Code(value="91772007", meaning="Organ")
MORPHOLOGY = Code(value="49755003", meaning="Morphologically Altered Structure")
LATERALITIES = {
    LEFT: Code(value="7771000", meaning="Left"),
    RIGHT: Code(value="24028007", meaning="Right"),
    "both": Code(value="51440002", meaning="Bilateral"),
}
TARGETS = {
    "GTV": Code(value="228791009", meaning="Gross tumor volume"),
    "CTV": Code(value="228792002", meaning="Clinical target volume"),
    "PTV": Code(value="228793007", meaning="Planning target volume"),
}
TARGET_NAME = re.compile(r"(GTV|CTV|PTV)(?![A-Za-z]{3})")


def code_of(name: str) -> StructureCode | None:
    """The codes of a TG-263 name; None where no code is sure.

    A structure that was made of others (``_PRV05``, ``-PTV``) has none: the organ's code would be wrong.

    Example:
        >>> code_of("Parotid_L").kind.value, code_of("Parotid_L").laterality.meaning
        ('45289007', 'Left')
    """
    target = TARGET_NAME.match(name)
    if target:
        return StructureCode(category=MORPHOLOGY, kind=TARGETS[target[1]])
    for structure in load_catalogue().structures:
        sides: dict[str, str | None] = {structure.name: None}
        if structure.paired:
            sides |= {structure.plural: "both", structure.sided(LEFT): LEFT, structure.sided(RIGHT): RIGHT}
            if structure.name == structure.plural:
                sides[structure.name] = None
        if name in sides and structure.snomed:
            side = sides[name]
            kind = Code(value=structure.snomed, meaning=structure.meaning)
            laterality = LATERALITIES[side] if side else None
            return StructureCode(category=ORGAN, kind=kind, laterality=laterality)
    return None
