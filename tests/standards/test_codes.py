"""Codes: every one is the standard's own, with its side."""

import pytest
from pydicom.sr._concepts_dict import concepts

from consilium.standards.catalogue import load_catalogue
from consilium.standards.codes import LATERALITIES, MORPHOLOGY, ORGAN, TARGETS, code_of

OF_DICOM = {code: meaning for entry in concepts["SCT"].values() for code, (meaning, *_) in entry.items()}
CODED = [s for s in load_catalogue().structures if s.snomed]


def words(text: str) -> set[str]:
    stop = {"structure", "of", "body", "system", "the", "proper", "part", "entire"}
    return {w.strip("()").removesuffix("al").removesuffix("a")[:5] for w in text.lower().split()} - stop


def test_most_structures_have_a_code_and_no_two_share_one() -> None:
    assert len(CODED) >= 80
    values = [s.snomed for s in CODED]
    assert len(set(values)) == len(values)
    assert all(len(s.meaning) <= 64 for s in CODED)


@pytest.mark.parametrize("structure", CODED, ids=lambda s: s.name)
def test_a_code_means_the_same_in_dicoms_dictionary_where_that_has_it(structure) -> None:
    if structure.snomed in OF_DICOM and structure.name not in {"SpinalCanal", "Bone_Pelvic"}:
        mine, theirs = words(structure.meaning), words(OF_DICOM[structure.snomed])
        assert {w[:4] for w in mine} & {w[:4] for w in theirs}, (
            structure.meaning,
            OF_DICOM[structure.snomed],
        )


def test_nine_of_ten_codes_stand_in_dicoms_dictionary() -> None:
    assert sum(s.snomed in OF_DICOM for s in CODED) >= 0.85 * len(CODED)
    for code in (ORGAN, MORPHOLOGY, *LATERALITIES.values(), *TARGETS.values()):
        assert code.value in OF_DICOM, code


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("Parotid_L", "45289007", "Left"),
        ("Femur_Head_R", "2812003", "Right"),
        ("Lungs", "39607008", "Bilateral"),
        ("Bladder", "89837001", None),
        ("PTVn_6000", "228793007", None),
        ("GTV", "228791009", None),
        ("CTV_5400_L", "228792002", None),
    ],
)
def test_known_names_have_their_code_and_side(name: str, value: str, side: str | None) -> None:
    code = code_of(name)
    assert code is not None
    assert code.kind.value == value
    assert (code.laterality.meaning if code.laterality else None) == side


@pytest.mark.parametrize(
    "name", ["", "Parotis li", "SpinalCord_PRV05", "Lungs-GTV", "Rectum_neu", "STRUCTURE 2"]
)
def test_what_is_no_plain_structure_has_no_code(name: str) -> None:
    assert code_of(name) is None
