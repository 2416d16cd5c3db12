"""IBSI-1's digital phantom: every feature within the reference's tolerance."""

import math
from functools import cache
from pathlib import Path

import pytest

from consilium.radiomics.definitions import FAMILIES, definitions, split_tag
from consilium.radiomics.features import FeatureValue, compute_features
from consilium.radiomics.settings import ibsi_phantom_settings
from tests.data import shared_data
from tests.radiomics.documentation import PAGE, tables, with_tables
from tests.radiomics.references import read_phantom, read_phantom_references

WITHOUT_CONSENSUS = {
    "morph_vol_dens_ombb",
    "morph_area_dens_ombb",
    "morph_vol_dens_mvee",
    "morph_area_dens_mvee",
    "ivh_auc",
}
"""Five features for which IBSI gives no reference value; they are not computed."""


@cache
def phantom_features(folder: Path) -> dict[str, FeatureValue]:
    image, mask = read_phantom(folder)
    features = compute_features(image, mask, (2.0, 2.0, 2.0), ibsi_phantom_settings())
    return {feature.tag: feature for feature in features}


def rounded(value: float, digits: int = 3) -> float:
    """As IBSI prints: to three significant digits."""
    return float(f"{value:.{digits}g}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_feature_of_the_digital_phantom_is_within_tolerance(family: str) -> None:
    folder = shared_data("ibsi")
    features = phantom_features(folder)
    wrong, compared = [], 0
    for tag, (reference, tolerance) in read_phantom_references(folder).items():
        if tag in WITHOUT_CONSENSUS or features[tag].family != family:
            continue
        compared += 1
        if abs(rounded(features[tag].value) - reference) > tolerance + 1e-9 * abs(reference):
            wrong.append((tag, features[tag].value, reference, tolerance))
    assert compared >= 2
    assert not wrong


def test_reference_and_computed_features_are_the_same_482() -> None:
    folder = shared_data("ibsi")
    references = read_phantom_references(folder)
    assert {tag for tag, (value, _) in references.items() if math.isnan(value)} == WITHOUT_CONSENSUS
    assert set(phantom_features(folder)) == set(references) - WITHOUT_CONSENSUS
    assert len(phantom_features(folder)) == 482


def test_each_feature_has_a_code_of_its_own_a_family_and_a_unit() -> None:
    known = definitions()
    assert len(known) == 169
    assert len({definition.ibsi_code for definition in known.values()}) == 169
    assert {definition.family for definition in known.values()} == set(FAMILIES)
    assert all(len(d.ibsi_code) == 4 and d.unit and d.name for d in known.values())


def test_tags_split_into_feature_and_aggregation() -> None:
    assert split_tag("cm_contrast_2_5D_comb") == ("cm_contrast", "2_5D_comb")
    assert split_tag("szm_sze_2_5D") == ("szm_sze", "2_5D")
    assert split_tag("szm_sze_2D") == ("szm_sze", "2D")
    assert split_tag("stat_mean") == ("stat_mean", "")


def test_the_tables_of_the_documentation_are_the_computed_ones() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, tables(shared_data("ibsi"))) == page, (
        "run python -m tests.radiomics.documentation"
    )
