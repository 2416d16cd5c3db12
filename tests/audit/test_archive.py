"""A foreign folder: what lies in it is judged as it is, with the remedy, and nobody is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from consilium.audit.archive import ArchiveAudit, audit_archive
from consilium.audit.judge import Weight
from consilium.cli.audit import audit
from consilium.errors import RefusedInput
from consilium.exporters.dicom_seg import export_seg
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.importers.sources import find_sources
from consilium.phantoms.dicom import SeriesIdentity, write_patient
from consilium.types import no_progress

SHAPE = (14, 40, 40)


def patient(folder: Path, label: str, seed: int = 0, structure: str = "Bladder") -> Path:
    """A round body in air with a square structure."""
    grid = Grid(SHAPE, Affine.from_spacing((3.0, 2.0, 2.0)))
    y, x = np.ogrid[:40, :40]
    noise = np.random.default_rng(seed).normal(0, 20, SHAPE)
    body = (y - 20) ** 2 + (x - 20) ** 2 < 15**2
    image = Volume(np.where(body, 20 + noise, -1000 + noise / 4).astype(np.int16), grid)
    square = np.array([[30, 30], [50, 30], [50, 50], [30, 50]], dtype=float)
    polygons = [np.column_stack([square, np.full(4, z)]) for z in (12.0, 15.0, 18.0, 21.0)]
    return write_patient(folder / label, image, {structure: polygons}, SeriesIdentity(label=label))


def codes(found: ArchiveAudit) -> dict[str, set[str]]:
    """Folder -> codes."""
    said: dict[str, set[str]] = {}
    for finding in found.audit.findings:
        said.setdefault(Path(found.places.get(finding.case_id, "")).parent.name, set()).add(finding.code)
    return said


def test_a_sound_patient_raises_no_alarm(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    found = audit_archive(tmp_path)
    assert found.audit.findings == ()
    assert (found.audit.cases, found.audit.usable_cases) == (1, 1)
    assert [(r.structure, r.usable, r.score) for r in found.audit.readiness] == [("Bladder", 1, 1.0)]


def test_a_missing_slice_blocks_the_case_and_its_structures_are_looked_at_all_the_same(
    tmp_path: Path,
) -> None:
    patient(tmp_path, "one")
    (tmp_path / "one" / "ct" / "ct_0004.dcm").unlink()
    found = audit_archive(tmp_path)
    assert {f.code for f in found.audit.findings} == {"uneven-slices", "interpolated-slices"}
    assert found.audit.usable_cases == 0
    assert [(r.structure, r.contoured, r.usable) for r in found.audit.readiness] == [("Bladder", 1, 0)]


def test_copies_in_another_folder_are_told_and_both_looked_at(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = audit_archive(tmp_path)
    assert codes(found) == {name: {"copied-files", "duplicate-image"} for name in ("one", "two")}
    assert [r.contoured for r in found.audit.readiness] == [2]


def test_a_series_split_over_folders_is_one_case(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    (tmp_path / "one" / "more").mkdir()
    for path in sorted((tmp_path / "one" / "ct").iterdir())[:5]:
        path.rename(tmp_path / "one" / "more" / path.name)
    found = audit_archive(tmp_path)
    assert (found.audit.cases, found.audit.findings) == (1, ())


def test_contours_without_images_are_told_and_count_as_no_case(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    patient(tmp_path, "two", seed=1)
    shutil.rmtree(tmp_path / "two" / "ct")
    found = audit_archive(tmp_path)
    assert found.audit.cases == 1
    assert [f.code for f in found.audit.findings] == ["no-images"]


def test_contours_that_share_the_frame_belong_to_its_only_series(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    path = tmp_path / "one" / "rtstruct.dcm"
    structures = dcmread(path)
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    structures.save_as(path)
    found = audit_archive(tmp_path)
    assert [r.contoured for r in found.audit.readiness] == [1]


def test_spellings_of_one_structure_are_counted_together(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    patient(tmp_path, "two", seed=1, structure="Blase")
    found = audit_archive(tmp_path)
    assert [(r.structure, r.contoured) for r in found.audit.readiness] == [("Bladder", 2)]
    assert [f.code for f in found.audit.findings] == ["name"]


def test_one_image_under_two_patients_blocks_both(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    patient(tmp_path, "two")
    found = audit_archive(tmp_path)
    blocked = [f.code for f in found.audit.findings if f.weight is Weight.BLOCKING]
    assert blocked == ["duplicate-patient"] * 2


def test_a_folder_link_that_leads_back_does_not_go_on_for_ever(tmp_path: Path) -> None:
    patient(tmp_path, "one")
    (tmp_path / "one" / "loop").symlink_to(tmp_path)
    assert audit_archive(tmp_path).audit.cases == 1


def test_nothing_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="folder"):
        audit_archive(tmp_path / "nothing")
    assert audit_archive(tmp_path).audit.cases == 0


def test_the_page_names_nobody_and_the_places_are_for_the_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = patient(tmp_path / "in", "Canary")
    (folder / "ct" / "ct_0004.dcm").unlink()
    audit(tmp_path / "in", tmp_path / "out")
    shown = (tmp_path / "out" / "audit.html").read_text() + (tmp_path / "out" / "audit.json").read_text()
    shown += capsys.readouterr().out
    assert "Canary" not in shown
    assert "uneven-slices" in shown
    assert "Canary" in str(json.loads((tmp_path / "out" / "places.json").read_text()))
    assert (tmp_path / "out" / "places.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("last", [True, False], ids=["cut off", "damaged inside"])
def test_a_damaged_segmentation_does_not_end_the_audit(tmp_path: Path, last: bool) -> None:
    patient(tmp_path, "one")
    patient(tmp_path, "two", seed=1)
    source = next(s for s in find_sources(tmp_path).sources if s.location.parent.name == "one")
    draft = source.read(no_progress)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:6, 10:20, 10:20] = True
    export_seg(tmp_path / "one" / "seg.dcm", [("Rectum", mask)], draft.image.grid, draft.private)
    seg = dcmread(tmp_path / "one" / "seg.dcm")
    frames = list(generate_frames(seg.PixelData, number_of_frames=int(seg.NumberOfFrames)))
    frames[-1 if last else 0] = b"\0" * 70
    seg.PixelData = encapsulate(frames)
    seg.save_as(tmp_path / "one" / "seg.dcm")
    found = audit_archive(tmp_path)
    (fault,) = [f for f in found.audit.findings if f.weight is Weight.BLOCKING]
    assert found.places[fault.case_id].endswith("one/ct")
    assert "DICOM SEG" in fault.message
    assert found.audit.usable_cases == 1
