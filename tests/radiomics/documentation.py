"""Writes the tables of docs/reference/radiomics.md: python -m tests.radiomics.documentation."""

import math
from pathlib import Path

from consilium.radiomics.definitions import (
    AGGREGATION_CODES,
    DIRECTIONAL_FAMILIES,
    FAMILIES,
    PLANE_CODES,
    PLANE_FAMILIES,
    definitions,
)
from consilium.radiomics.features import compute_features, unit_of
from consilium.radiomics.settings import ibsi_phantom_settings
from tests.data import REPOSITORY, find_shared_data
from tests.radiomics.references import read_phantom, read_phantom_references

PAGE = REPOSITORY / "docs" / "reference" / "radiomics.md"
BEGIN, END = "<!-- begin: generated tables -->", "<!-- end: generated tables -->"


def tables(folder: Path) -> str:
    """One table per family: our value and IBSI's reference for the digital phantom."""
    image, mask = read_phantom(folder)
    found = compute_features(image, mask, (2.0, 2.0, 2.0), ibsi_phantom_settings())
    ours = {feature.tag: feature.value for feature in found}
    references = read_phantom_references(folder)
    return "\n".join(_table(family, ours, references) for family in FAMILIES)


def _table(family: str, ours: dict[str, float], references: dict[str, tuple[float, float]]) -> str:
    ways = dict.fromkeys([""])
    if family in DIRECTIONAL_FAMILIES:
        ways = dict.fromkeys(AGGREGATION_CODES)
    elif family in PLANE_FAMILIES:
        ways = dict.fromkeys(PLANE_CODES)
    names = [f"{way} {(AGGREGATION_CODES | PLANE_CODES)[way]}" if way else "ours (reference)" for way in ways]
    lines = [
        f"### {family.capitalize()}\n",
        "| tag | name | code | unit | " + " | ".join(names) + " |",
        "|---|---|---|---|" + "--:|" * len(names),
    ]
    for definition in (d for d in definitions().values() if d.family == family):
        tags = [f"{definition.tag}_{way}" if way else definition.tag for way in ways]
        cells = " | ".join(_cell(ours[tag], *references[tag]) for tag in tags)
        unit = unit_of(definition, "HU")
        lines.append(
            f"| `{definition.tag}` | {definition.name} | {definition.ibsi_code} | {unit} | {cells} |"
        )
    return "\n".join(lines) + "\n"


def _cell(value: float, reference: float, tolerance: float) -> str:
    allowed = f" ± {tolerance:g}" if tolerance and not math.isnan(tolerance) else ""
    return f"{value:.4g} ({reference:.3g}{allowed})"


def with_tables(page: str, generated: str) -> str:
    """The page with the part between the marks replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{generated}\n{END}{rest.split(END)[1]}"


def main() -> None:
    folder = find_shared_data()
    assert folder is not None, "IBSI's phantom is needed to write the tables"
    text = with_tables(PAGE.read_text(encoding="utf-8"), tables(folder / "ibsi"))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
