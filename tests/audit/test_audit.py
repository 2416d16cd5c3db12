"""The audit: seeded faults in real cases are found, untouched cases raise few alarms."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.audit.facts import CaseFacts, compute_case_facts
from consilium.audit.judge import Weight, audit_dataset, judge
from consilium.cases.annotate import write_annotation
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cases.nifti import read_nifti
from consilium.cli.audit import audit
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, Mask
from tests.cases.drafts import draft
from tests.data import shared_data

NAMES = {"LeftParotid": "Parotid_L", "RightParotid": "Parotid_R", "Mandible": "Bone_Mandible"}
Masks = dict[str, Mask]
Change = Callable[[Volume, Masks], tuple[Volume, Masks]]


def read_patient(folder: Path) -> tuple[Volume, Masks]:
    masks = {}
    for path in sorted((folder / "segmentations").iterdir()):
        name = path.name.removesuffix(".nii.gz")
        mask = read_nifti(path).array > 0
        if mask.any():
            masks[NAMES.get(name, name)] = mask
    return read_nifti(folder / "ct.nii.gz"), masks


def draft_of(name: str, image: Volume, masks: Masks) -> CaseDraft:
    annotations = tuple(
        AnnotationDraft(structure=structure, reader="clinical", mask=lambda m=mask: m)  # type: ignore[misc]
        for structure, mask in masks.items()
    )
    return CaseDraft(
        source_identity=name,
        patient_identity=name,
        image=image,
        modality="CT",
        annotations=annotations,
        importer="test",
        source_sha256={"ct": "0" * 64},
    )


@pytest.fixture(scope="module")
def patients() -> dict[str, tuple[Volume, Masks]]:
    folders = sorted(p for p in shared_data("openkbp").iterdir() if p.is_dir())
    return {folder.name: read_patient(folder) for folder in folders[:24]}


@pytest.fixture(scope="module")
def untouched(
    patients: dict[str, tuple[Volume, Masks]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, CaseFacts]:
    dataset = create_dataset(tmp_path_factory.mktemp("audit") / "dataset")
    return {name: facts_of(dataset, name, *patient) for name, patient in patients.items()}


def facts_of(dataset: Dataset, name: str, image: Volume, masks: Masks) -> CaseFacts:
    return compute_case_facts(dataset, dataset.add(draft_of(name, image, masks), replace=True)[0])


def on_image(change: Callable[[Array], Array]) -> Change:
    return lambda image, masks: (Volume(change(image.array.copy()), image.grid), masks)


def on_mask(structure: str, change: Callable[[Mask], Mask]) -> Change:
    return lambda image, masks: (image, {**masks, structure: change(masks[structure].copy())})


def swap(image: Volume, masks: Masks) -> tuple[Volume, Masks]:
    return image, {**masks, "Parotid_L": masks["Parotid_R"], "Parotid_R": masks["Parotid_L"]}


def only_one_wrong(image: Volume, masks: Masks) -> tuple[Volume, Masks]:
    kept = {name: mask for name, mask in masks.items() if name != "Parotid_R"}
    return image, {**kept, "Parotid_L": masks["Parotid_R"]}


def coarser(image: Volume, masks: Masks) -> tuple[Volume, Masks]:
    array = image.array[::3]
    grid = Grid(array.shape, image.grid.affine.scaled((3, 1, 1)))
    return Volume(array, grid), {name: mask[::3] for name, mask in masks.items()}


def cut_slices(image: Volume, masks: Masks) -> tuple[Volume, Masks]:
    middle = int(np.argwhere(masks["Parotid_L"]).mean(axis=0)[0])
    part = slice(max(0, middle - 4), middle + 4)
    grid = Grid(image.array[part].shape, image.grid.affine.shifted((part.start, 0, 0)))
    return Volume(image.array[part], grid), {name: mask[part] for name, mask in masks.items()}


def mirror(image: Volume, masks: Masks) -> tuple[Volume, Masks]:
    return Volume(image.array[:, :, ::-1].copy(), image.grid), {n: m[:, :, ::-1] for n, m in masks.items()}


def repeat_slices(array: Array) -> Array:
    array[41] = array[40]
    return array


def blank(array: Array) -> Array:
    array[40:43] = -1024
    return array


def fill_border(array: Array) -> Array:
    array[:, :20] = 20
    array[:, :, -12:] = 20
    return array


def every_second_slice(mask: Mask) -> Mask:
    rows = np.flatnonzero(mask.any(axis=(1, 2)))
    mask[rows[1:-1:2]] = False
    return mask


def two_pieces(mask: Mask) -> Mask:
    return mask | np.roll(mask, 25, axis=1)


def few_voxels(mask: Mask) -> Mask:
    keep = np.zeros_like(mask)
    keep[tuple(np.argwhere(mask)[len(np.argwhere(mask)) // 2])] = True
    return keep


FAULTS: dict[str, tuple[str, Change]] = {
    "left and right swapped": ("laterality", swap),
    "the only parotid on the wrong side": ("laterality", only_one_wrong),
    "mirrored image": ("laterality", mirror),
    "air at 0": ("hu-calibration", on_image(lambda a: a + 1024)),
    "slope 0.5": ("hu-calibration", on_image(lambda a: (a * 0.5).astype(np.int16))),
    "slope 2": (
        "hu-calibration",
        on_image(lambda a: (a * 2.0).astype(np.int16)),
    ),
    "offset 200": ("hu-calibration", on_image(lambda a: a + 200)),
    "inverted": ("hu-calibration", on_image(lambda a: -a)),
    "blank slices": ("blank-slices", on_image(blank)),
    "repeated slice": ("repeated-slices", on_image(repeat_slices)),
    "truncated view": ("truncated-view", on_image(fill_border)),
    "every third slice": ("coarse", coarser),
    "eight slices": ("few-slices", cut_slices),
    "empty mask": ("empty", on_mask("Parotid_L", lambda m: m & False)),
    "mask in the air": ("outside-body", on_mask("Parotid_L", lambda m: np.roll(m, -m.shape[1] // 2, axis=1))),
    "mask on the wrong slices": ("uneven-pair", on_mask("Parotid_L", lambda m: np.roll(m, 45, axis=0))),
    "mask shifted to the back": ("place", on_mask("Parotid_R", lambda m: np.roll(m, 14, axis=1))),
    "every second slice contoured": ("missing-contours", on_mask("Parotid_L", every_second_slice)),
    "two pieces": ("pieces", on_mask("Parotid_L", two_pieces)),
    "a single voxel": ("volume", on_mask("Parotid_L", few_voxels)),
    "the same mask twice": ("same-mask", lambda i, m: (i, {**m, "Bone_Mandible": m["Parotid_L"]})),
    "another spelling": ("name", lambda i, m: (i, {**m, "Ohrspeicheldr. li": m["Parotid_R"]})),
}


def test_at_least_95_percent_of_seeded_faults_are_found(
    patients: dict[str, tuple[Volume, Masks]], untouched: dict[str, CaseFacts], tmp_path: Path
) -> None:
    dataset = create_dataset(tmp_path / "faults")
    missed, planted = [], 0
    names = [name for name, (_, masks) in patients.items() if {"Parotid_L", "Parotid_R"} <= set(masks)]
    for k, (what, (code, change)) in enumerate(FAULTS.items()):
        for name in (names[k % len(names)], names[(k + 7) % len(names)]):
            image, masks = change(*patients[name])
            facts = facts_of(dataset, name, image, masks)
            result = judge([*(f for n, f in untouched.items() if n != name), facts])
            before = {
                (f.code, f.structure)
                for f in judge(list(untouched.values())).findings
                if f.case_id == untouched[name].case_id
            }
            found = {(f.code, f.structure) for f in result.findings if f.case_id == facts.case_id}
            planted += 1
            if code not in {c for c, _ in found - before}:
                missed.append((what, name, sorted(found - before)))
    assert len(missed) <= 0.05 * planted, "\n".join(map(str, missed))


def test_untouched_cases_raise_blocking_alarms_in_under_5_percent_of_structures(
    untouched: dict[str, CaseFacts],
) -> None:
    result = judge(list(untouched.values()))
    structures = sum(len(facts.structures) for facts in untouched.values())
    blocking = {(f.case_id, f.structure) for f in result.findings if f.weight is Weight.BLOCKING}
    assert len(blocking) < 0.05 * structures, blocking
    looks = {(f.case_id, f.structure) for f in result.findings if f.code != "name"}
    assert len(looks) < 0.05 * structures, looks


def test_one_image_under_two_patients_blocks_both(
    patients: dict[str, tuple[Volume, Masks]], tmp_path: Path
) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    first = next(iter(patients.values()))
    facts = [facts_of(dataset, name, *first) for name in ("one", "two")]
    result = judge(facts)
    assert [f.code for f in result.findings if f.weight is Weight.BLOCKING] == ["duplicate-patient"] * 2
    assert result.usable_cases == 0
    assert all(r.usable == 0 for r in result.readiness)


def test_one_image_twice_of_one_patient_is_only_worth_a_look(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    source = draft(1)
    dataset.add(source)
    dataset.add(replace(source, source_identity="1.2.3.9"))
    result = judge([compute_case_facts(dataset, case) for case in dataset.cases()])
    codes = {f.code: f.weight for f in result.findings}
    assert codes["duplicate-image"] is Weight.LOOK
    assert "duplicate-patient" not in codes


def test_nothing_is_found_in_nothing() -> None:
    result = judge([])
    assert (result.cases, result.usable_cases, result.findings, result.readiness) == (0, 0, (), ())


def test_the_verb_writes_a_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    dataset.add(draft(1))
    audit(dataset.folder, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["cases"] == 1
    assert {r["structure"] for r in record["readiness"]} == {"Bladder"}
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Bladder" in page
    assert all(finding["message"].split(";")[0][:20] in page for finding in record["findings"])
    assert "Page:" in capsys.readouterr().out


def test_what_a_model_proposed_is_no_contour_to_use(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    case, _ = dataset.add(draft(1))
    everywhere = np.ones(case.image.grid.shape_zyx, dtype=bool)
    write_annotation(dataset, case.case_id, "Liver", everywhere, reader="model-0123")
    write_annotation(dataset, case.case_id, "Spleen", ~everywhere, reader="model-0123")
    facts = compute_case_facts(dataset, dataset.case(case.case_id))
    assert {s.structure for s in facts.structures} == {"Bladder"}
    assert facts.absent == ("Prostate",)


def test_a_damaged_case_blocks_itself_and_not_the_audit(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "dataset")
    damaged, _ = dataset.add(draft(1))
    dataset.add(draft(2))
    (dataset.case_folder(damaged.case_id) / "image.nii.gz").write_bytes(b"")
    result = audit_dataset(dataset)
    assert result.cases == 2
    (fault,) = [f for f in result.findings if f.code == "unusable-case"]
    assert (fault.case_id, fault.weight) == (damaged.case_id, Weight.BLOCKING)
