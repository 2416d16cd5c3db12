"""What each feature is called: IBSI's names, codes, units, families and ways of aggregation."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

AGGREGATION_CODES = {
    "2D_avg": "BTW3",
    "2D_comb": "SUJT",
    "2_5D_avg": "JJUI",
    "2_5D_comb": "ZW7Z",
    "3D_avg": "ITBB",
    "3D_comb": "IAZD",
}
"""For matrices that have directions (co-occurrence, run length): ``avg`` averages features over directions,
``comb`` merges matrices over directions; 2D averages over slices, 2.5D merges slices."""

PLANE_CODES = {"2D": "8QNN", "2_5D": "62GR", "3D": "KOBO"}
"""For matrices without directions (zones, tone difference, dependence)."""

DIRECTIONAL_FAMILIES = ("grey level co-occurrence matrix", "grey level run length matrix")
PLANE_FAMILIES = (
    "grey level size zone matrix",
    "grey level distance zone matrix",
    "neighbourhood grey tone difference matrix",
    "neighbouring grey level dependence matrix",
)
PLAIN_FAMILIES = (
    "morphology",
    "local intensity",
    "intensity statistics",
    "intensity histogram",
    "intensity-volume histogram",
)
FAMILIES = PLAIN_FAMILIES + DIRECTIONAL_FAMILIES + PLANE_FAMILIES


@dataclass(frozen=True)
class Definition:
    """One feature as IBSI names it.

    Attributes:
        family: One of `FAMILIES`.
        tag: Short name of IBSI's reference tables without the way of aggregation, e.g. ``"cm_contrast"``.
        name: IBSI's name.
        ibsi_code: IBSI's permanent identifier of four characters.
        unit: Unit, in which ``intensity`` stands for the image's own unit and ``level`` for a grey level.
    """

    family: str
    tag: str
    name: str
    ibsi_code: str
    unit: str


@cache
def definitions() -> dict[str, Definition]:
    """All features by tag, in IBSI's order."""
    text = files("consilium.radiomics").joinpath("definitions.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["tag"]: Definition(**row) for row in rows}


def family_tags(prefix: str) -> tuple[str, ...]:
    """Tags that start with ``prefix``, in IBSI's order, e.g. of ``"cm_"``."""
    return tuple(tag for tag in definitions() if tag.startswith(prefix))


def split_tag(tag: str) -> tuple[str, str]:
    """Split ``"cm_contrast_3D_avg"`` into ``("cm_contrast", "3D_avg")``; else the second is empty."""
    for aggregation in (*AGGREGATION_CODES, *PLANE_CODES):
        if tag.endswith("_" + aggregation):
            return tag.removesuffix("_" + aggregation), aggregation
    return tag, ""
