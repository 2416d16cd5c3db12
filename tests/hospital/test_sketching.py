"""One plan for everybody from sketches: equal to the pooled one within one step, checked by each."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cases.annotate import write_annotation
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cli import federation_plan
from consilium.errors import ConfigurationError, DataError
from consilium.federation.federation_file import read_federation_file, write_federation_file
from consilium.federation.plan_sketch import AXES, Sketch
from consilium.federation.settings import FederationSettings, SiteEnrolment
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.hospital.agreement import read_agreement, read_config
from consilium.hospital.sketching import (
    check_plan,
    load_sketches,
    plan_federation,
    save_sketches,
    sketch_dataset,
)
from consilium.training.facts import collect_facts
from consilium.training.planning import decide_plan
from consilium.types import Shape, Triple
from tests.cases.drafts import ball_mask

HOSPITALS: dict[str, tuple[Triple, Shape, str, float]] = {
    "north": ((3.0, 2.0, 2.0), (20, 60, 60), "Liver", 20.0),
    "south": ((5.0, 2.5, 2.5), (14, 48, 56), "Spleen", 14.0),
    "east": ((2.5, 1.5, 1.5), (26, 72, 72), "Liver", 24.0),
}
"""Spacing, voxels, the organ that is contoured, and its radius in millimetres."""


def add_cases(dataset: Dataset, name: str, cases: int = 6) -> Dataset:
    """CT of a body in air with one ball, a little different in every patient."""
    spacing, (nz, ny, nx), organ, radius = HOSPITALS[name]
    for number in range(cases):
        grid = Grid((nz, ny - number, nx), Affine.from_spacing(spacing))
        z, y, x = np.ogrid[:nz, : ny - number, :nx]
        body = ((y - ny / 2) / (0.4 * ny)) ** 2 + ((x - nx / 2) / (0.4 * nx)) ** 2 + 0 * z < 1
        ball = ball_mask(grid, (nz / 2, ny / 2, nx / 2), radius + number)
        values = np.where(body, 40, -1000) + 60 * ball
        dataset.add(
            CaseDraft(
                source_identity=f"{name} {number}",
                patient_identity=f"{name} {number}",
                image=Volume(values.astype(np.int16), grid),
                modality="CT",
                annotations=(AnnotationDraft(structure=organ, reader="clinical", mask=lambda m=ball: m),),
                importer="test",
                source_sha256={"n": f"{name}{number}"},
            )
        )
    return dataset


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("hospitals")
    return {name: add_cases(create_dataset(folder / name), name) for name in HOSPITALS}


@pytest.fixture(scope="module")
def sketches(hospitals: dict[str, Dataset]) -> dict[str, Sketch]:
    return {name: sketch_dataset(dataset) for name, dataset in hospitals.items()}


def settings_for(**training: object) -> FederationSettings:
    sites = (SiteEnrolment(name="north", cases=1),)
    return FederationSettings(name="abdomen", rounds=4, sites=sites, training=training)


def test_the_plan_of_sketches_is_the_pooled_one_within_one_step(
    sketches: dict[str, Sketch], hospitals: dict[str, Dataset], tmp_path: Path
) -> None:
    config = {"network": "iunet", "channels": [16, 32, 64]}
    agreed = read_agreement(plan_federation(settings_for(config=config, memory_gib=2), sketches)).plan
    pooled = create_dataset(tmp_path / "pooled")
    for name in hospitals:
        add_cases(pooled, name)
    settings = read_config({"config": config})
    facts = collect_facts(pooled, list(pooled.cases()), settings)
    central = decide_plan(facts, settings, memory_bytes=2 << 30, device=torch.device("cpu"), bf16=False)
    assert agreed.structures == central.structures == ("Liver", "Spleen")
    assert dataclasses.replace(agreed.network, bf16=False) == central.network
    assert (agreed.patch_zyx, agreed.batch, agreed.mirror) == (
        central.patch_zyx,
        central.batch,
        central.mirror,
    )
    for ours, theirs in zip(
        agreed.preprocessing.spacing_zyx_mm, central.preprocessing.spacing_zyx_mm, strict=True
    ):
        assert ours == pytest.approx(theirs, abs=0.011), "one bin of the spacing"
    for ours_n, theirs_n in zip(agreed.typical_zyx, central.typical_zyx, strict=True):
        assert abs(ours_n - theirs_n) <= max(agreed.network.total_stride)


def test_every_hospital_derives_the_same_plan_and_notices_another(
    sketches: dict[str, Sketch], tmp_path: Path
) -> None:
    planned = plan_federation(settings_for(), sketches)
    backwards = plan_federation(settings_for(), dict(reversed(list(sketches.items()))))
    assert read_agreement(planned).plan == read_agreement(backwards).plan
    assert {site.name: dict(site.structures) for site in planned.sites} == {
        "north": {"Liver": 6},
        "south": {"Spleen": 6},
        "east": {"Liver": 6},
    }
    write_federation_file(tmp_path / "federation.toml", planned, None)
    save_sketches(tmp_path, sketches)
    read, _ = read_federation_file(tmp_path / "federation.toml")
    assert read.digest == planned.digest
    assert load_sketches(tmp_path) == sketches
    check_plan(read, load_sketches(tmp_path))
    table = json.loads(json.dumps(dict(planned.training)))
    table["plan"]["preprocessing"]["spacing_zyx_mm"] = [1.0, 1.0, 1.0]
    with pytest.raises(ConfigurationError, match="plan must follow from the hospitals' sketches"):
        check_plan(dataclasses.replace(planned, training=table), sketches)


def test_the_first_model_starts_at_the_share_of_every_organ(sketches: dict[str, Sketch]) -> None:
    agreement = read_agreement(plan_federation(settings_for(), sketches))
    first = agreement.build_initial()
    again = agreement.build_initial()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    bias = first["heads.0.bias"].reshape(2, -1)
    shares = 1 / (1 + np.exp(-bias[:, 0]))
    assert shares == pytest.approx(agreement.prior, rel=1e-3)
    assert 0.001 < agreement.prior[1] < agreement.prior[0] < 0.5


def test_nothing_of_a_single_case_is_in_a_sketch(sketches: dict[str, Sketch]) -> None:
    for sketch in sketches.values():
        for name, counts in sketch.counts.items():
            if name != "intensity_hu":
                assert min(count for count in counts if count) >= 5, name
        text = sketch.encode().decode()
        assert "case-" not in text
        assert "patient-" not in text
        assert set(json.loads(text)) == {"cases", "counts", "modality", "structures"}
        assert set(AXES) <= set(sketch.counts)


def test_a_structure_of_one_case_and_a_name_that_cannot_be_are_left_out_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = add_cases(create_dataset(tmp_path / "data"), "north")
    for number, case in enumerate(list(dataset.cases())):
        names = ["z~ring", *(["GTV_Mueller"] if number == 0 else [])]
        for name in names:
            mask = np.ones(case.image.grid.shape_zyx, bool)
            write_annotation(dataset, case.case_id, name, mask, reader="clinical")
    federation_plan.sketch(tmp_path / "data", tmp_path / "sketch.json", site="north")
    assert set(json.loads((tmp_path / "sketch.json").read_text())["sketch"]["structures"]) == {"Liver"}
    assert "Mueller" not in (tmp_path / "sketch.json").read_text()
    said = capsys.readouterr().out
    assert "GTV_Mueller" in said
    assert "z~ring" in said


def test_a_hospital_of_four_cases_sends_nothing(tmp_path: Path) -> None:
    few = add_cases(create_dataset(tmp_path / "few"), "north", cases=4)
    with pytest.raises(DataError, match=r"at least 5 contoured cases.* found 4"):
        sketch_dataset(few)


def test_a_federation_file_without_a_plan_says_how_to_get_one() -> None:
    with pytest.raises(ConfigurationError, match="consilium federation plan"):
        read_agreement(settings_for())


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"step_per_round": 3}, "'step_per_round' is not a setting"),
        ({"config": {"structures": ["Kidney"]}}, r"nobody knows \['Kidney'\]"),
    ],
)
def test_what_cannot_be_planned_is_named(
    sketches: dict[str, Sketch], training: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        plan_federation(settings_for(**training), sketches)
