"""What needs a look comes first: doubt, disagreement, volumes that stand out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.cases.annotate import write_annotation
from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset, create_dataset
from consilium.review.attention import Attention, Kind, doubts, volume_outliers
from tests.cases.drafts import draft

MODEL = "model-0123abcd"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    for number in range(1, 4):
        dataset.add(draft(number))
    return dataset


def computed(dataset: Dataset) -> Attention:
    attention = Attention(dataset)
    attention.compute()
    return attention


def with_volumes(case: Case, volumes: list[float]) -> list[Case]:
    one = next(a for a in case.annotations if a.state is State.CONTOURED)
    ids = [f"case-{k:016x}" for k in range(len(volumes))]
    annotations = [(replace(one, volume_cm3=volume),) for volume in volumes]
    return [replace(case, case_id=i, annotations=a) for i, a in zip(ids, annotations, strict=True)]


def test_a_volume_far_from_the_others_stands_out(dataset: Dataset) -> None:
    case = next(dataset.cases())
    volumes = [50.0, 52.0, 49.0, 51.0, 48.0, 50.5, 100.0]
    found = volume_outliers(with_volumes(case, volumes))
    assert list(found) == [f"case-{6:016x}"]
    (reason,) = found[f"case-{6:016x}"]
    assert reason.kind is Kind.VOLUME
    assert reason.value == pytest.approx(100 / 50.5)
    assert volume_outliers(with_volumes(case, volumes[-4:])) == {}, "four volumes are too few to say"


def test_a_model_in_doubt_and_a_structure_it_did_not_find_need_a_look(dataset: Dataset) -> None:
    case = next(dataset.cases())
    found = Annotation(
        structure="Rectum", reader=MODEL, state=State.CONTOURED, file="x", content_sha256="y", doubt=0.35
    )
    missed = Annotation(structure="Prostate", reader=MODEL, state=State.ABSENT)
    reasons = {r.structure: r for r in doubts(replace(case, annotations=(found, missed)))}
    assert reasons["Rectum"].value == 0.35
    assert "Dice expected: 0.65" in reasons["Rectum"].message
    assert reasons["Prostate"].score > reasons["Rectum"].score


def test_the_two_readers_that_agree_least_are_named(dataset: Dataset) -> None:
    case = next(dataset.cases())
    reference = dataset.load_mask(case, "Bladder", "clinical")
    shifted = np.roll(reference, -2, axis=2)
    write_annotation(dataset, case.case_id, "Bladder", shifted, reader=MODEL, doubt=0.0)
    look = computed(dataset).look(case.case_id)
    assert look is not None
    reason = look.strongest(Kind.DISAGREEMENT)
    assert reason is not None
    pairs = [
        (dataset.load_mask(case, "Bladder", "clinical"), shifted, {"clinical", MODEL}),
        (dataset.load_mask(case, "Bladder", "reader-2"), shifted, {"reader-2", MODEL}),
        (reference, dataset.load_mask(case, "Bladder", "reader-2"), {"clinical", "reader-2"}),
    ]
    scored = [(1 - 2 * (a & b).sum() / (a.sum() + b.sum()), names) for a, b, names in pairs]
    value, names = max(scored, key=lambda pair: pair[0])
    assert reason.value == pytest.approx(value)
    assert set(reason.readers) == names


def test_a_case_that_is_imported_while_the_page_is_open_is_listed(dataset: Dataset) -> None:
    attention = computed(dataset)
    fresh, _ = dataset.add(draft(4))
    assert fresh.case_id in [look.case.case_id for look in attention.looks()]
    dataset.remove(fresh.case_id)
    assert fresh.case_id not in [look.case.case_id for look in attention.looks()]


def test_a_model_proposes_and_does_not_count_as_a_reader(dataset: Dataset) -> None:
    case = next(dataset.cases())
    grid = case.image.grid.shape_zyx
    fresh, annotation = write_annotation(
        dataset, case.case_id, "Liver", np.ones(grid, dtype=bool), reader=MODEL, doubt=0.1
    )
    assert annotation.doubt == 0.1
    assert fresh.state("Liver") is State.UNKNOWN
    assert "Liver" not in fresh.structures
    assert fresh.readers("Liver") == ()
    assert fresh.state("Liver", MODEL) is State.CONTOURED
    assert dataset.load_mask(dataset.case(case.case_id), "Liver", MODEL).all()
