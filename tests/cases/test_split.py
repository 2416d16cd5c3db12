"""Splits go by patient, balance what is known and repeat exactly."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.case import Annotation, Case, ImageRecord, Provenance, State
from consilium.cases.split import Split, fold_cases, load_splits, save_splits, split_cases
from consilium.errors import ConfigurationError, DatasetError
from tests.data import shared_data
from tests.geometry.grids import grid

IMAGE = ImageRecord(
    file="image.nii.gz",
    modality="CT",
    unit="HU",
    dtype="int16",
    grid=grid((4, 4, 4), (1.0, 1.0, 1.0)),
    content_sha256="0" * 64,
)


def case(number: int, patient: int, known: list[str]) -> Case:
    return Case(
        case_id=f"case-{number:016x}",
        patient_id=f"patient-{patient:016x}",
        image=IMAGE,
        annotations=tuple(Annotation(structure=s, reader="a", state=State.ABSENT) for s in known),
        provenance=Provenance(importer="test", consilium_version="0", source_sha256={}, scanner={}),
    )


def many(patients: int, seed: int = 3) -> list[Case]:
    """Patients with 1 to 3 cases; B is known in half, C in a tenth."""
    rng = np.random.default_rng(seed)
    cases = []
    for patient in range(patients):
        known = ["A"] + ["B"] * bool(rng.random() < 0.5) + ["C"] * (patient % 10 == 0)
        cases += [case(1000 * patient + k, patient, known) for k in range(int(rng.integers(1, 4)))]
    return cases


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_stands_in_both_parts_and_none_is_lost(seed: int) -> None:
    cases = many(57)
    patient = {c.case_id: c.patient_id for c in cases}
    split = split_cases(cases, seed=seed)
    assert sorted(split.training + split.validation) == sorted(patient)
    parts = [{patient[c] for c in part} for part in (split.training, split.validation)]
    assert not parts[0] & parts[1]
    assert len(parts[1]) == round(0.2 * 57)


def test_the_order_of_the_cases_does_not_matter_and_the_seed_does(rng: np.random.Generator) -> None:
    cases = many(40)
    shuffled = [cases[k] for k in rng.permutation(len(cases))]
    assert split_cases(cases, seed=4) == split_cases(shuffled, seed=4)
    assert split_cases(cases, seed=4) != split_cases(cases, seed=5)


@pytest.mark.parametrize("seed", range(10))
def test_a_structure_known_in_a_tenth_is_shared_out_four_to_one(seed: int) -> None:
    cases = [case(p, p, ["A"] + ["C"] * (p % 10 == 0)) for p in range(50)]
    assert split_cases(cases, seed=seed).structures == {"A": (40, 10), "C": (4, 1)}


def test_every_patient_validates_in_exactly_one_fold() -> None:
    cases = many(33)
    folds = fold_cases(cases, 5, seed=1)
    validated = [c for fold in folds for c in fold.validation]
    assert sorted(validated) == sorted(c.case_id for c in cases)
    for fold in folds:
        assert sorted(fold.training + fold.validation) == sorted(validated)
        patients = {c.patient_id for c in cases if c.case_id in set(fold.validation)}
        assert len(patients) in (6, 7)


def test_two_patients_give_one_each() -> None:
    split = split_cases([case(1, 1, ["A"]), case(2, 2, [])])
    assert (len(split.training), len(split.validation)) == (1, 1)


def test_a_single_patient_is_refused() -> None:
    with pytest.raises(DatasetError, match="two patients"):
        split_cases([case(1, 1, []), case(2, 1, [])])


@pytest.mark.parametrize("fraction", [0, 1, -0.2, float("nan")])
def test_a_fraction_that_leaves_no_part_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="validation_fraction"):
        split_cases(many(5), validation_fraction=fraction)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="folds"):
        fold_cases(many(4), 5)


def test_a_case_in_both_parts_is_no_split() -> None:
    split = split_cases(many(10))
    with pytest.raises(DatasetError, match="both"):
        replace(split, training=split.training + split.validation[:1])


def test_splits_are_read_back_as_saved(tmp_path: Path) -> None:
    splits = fold_cases(many(10), 3, seed=2)
    save_splits(tmp_path / "split.json", splits, seed=2)
    assert load_splits(tmp_path / "split.json") == splits
    assert isinstance(splits[0], Split)
    record = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps(record | {"version": 9}))
    with pytest.raises(DatasetError, match="version"):
        load_splits(tmp_path / "split.json")


def test_the_forty_openkbp_patients_are_balanced_per_organ() -> None:
    folder = shared_data("openkbp")
    cases = [
        case(k, k, [p.name.removesuffix(".nii.gz") for p in (folder / name / "segmentations").iterdir()])
        for k, name in enumerate(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    ]
    split = split_cases(cases, validation_fraction=0.25)
    assert len(split.validation) == 10
    for name, (training, validation) in split.structures.items():
        assert abs(validation - (training + validation) / 4) <= 1.5, name
