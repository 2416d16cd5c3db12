"""SEG out and in: the same voxels, the kind that holds overlaps, read by highdicom as well."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from consilium.errors import DataError, RefusedInput
from consilium.exporters.dicom_seg import export_seg
from consilium.importers.dicom_seg import annotations_from_seg
from consilium.importers.sources import find_sources
from consilium.types import Mask, no_progress
from tests.geometry.grids import OBLIQUE_AXES_LPS, grid
from tests.importers.files import write_noise

SHAPE = (6, 12, 10)


def masks(*, overlap: bool) -> list[tuple[str, Mask]]:
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[1:4, 2:7, 3:8] = True
    two[3:5, 6 if overlap else 8 : 11, 3:8] = True
    return [("Bladder", one), ("Rectum", two)]


@pytest.mark.parametrize("overlap", [False, True])
def test_masks_come_back_through_a_seg_on_an_oblique_series(tmp_path: Path, overlap: bool) -> None:
    write_noise(tmp_path / "ct", grid(SHAPE, (2.5, 0.8, 1.1), OBLIQUE_AXES_LPS))
    (source,) = find_sources(tmp_path).sources
    draft = source.read(no_progress)
    truth = masks(overlap=overlap)
    kind = export_seg(tmp_path / "seg.dcm", truth, draft.image.grid, draft.private)
    assert kind == ("BINARY" if overlap else "LABELMAP")
    again = find_sources(tmp_path).sources[0].read(no_progress)
    assert [a.structure for a in again.annotations] == ["Bladder", "Rectum"]
    for annotation, (_, mask) in zip(again.annotations, truth, strict=True):
        assert annotation.mask is not None
        assert np.array_equal(annotation.mask(), mask)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.SeriesInstanceUID != draft.private["series"]["SeriesInstanceUID"]
    assert seg.FrameOfReferenceUID == draft.private["series"]["FrameOfReferenceUID"]


def test_segments_of_standard_names_are_coded_and_others_are_not_guessed(tmp_path: Path) -> None:
    write_noise(tmp_path / "ct", grid(SHAPE, (2.5, 1.0, 1.0)))
    draft = find_sources(tmp_path).sources[0].read(no_progress)
    _, (_, mask) = masks(overlap=False)
    named = [("Parotid_L", mask), ("something else", np.roll(mask, -3, axis=0))]
    export_seg(tmp_path / "seg.dcm", named, draft.image.grid, draft.private)
    parotid, other = hd.seg.segread(tmp_path / "seg.dcm").SegmentSequence[-2:]
    kind = parotid.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue) == ("SCT", "45289007")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_a_seg_of_another_frame_of_reference_or_grid_is_refused(tmp_path: Path) -> None:
    write_noise(tmp_path / "ct", grid(SHAPE, (2.5, 1.0, 1.0)))
    draft = find_sources(tmp_path).sources[0].read(no_progress)
    export_seg(tmp_path / "seg.dcm", masks(overlap=False), draft.image.grid, draft.private)
    with pytest.raises(RefusedInput, match="frame of reference"):
        annotations_from_seg(
            tmp_path / "seg.dcm", draft.image.grid, frame_of_reference_uid="1.2.3", reader="segmentation"
        )
    with pytest.raises(RefusedInput, match=r"lies .* mm from slice"):
        annotations_from_seg(
            tmp_path / "seg.dcm",
            grid(SHAPE, (2.5, 1.1, 1.0)),
            frame_of_reference_uid="",
            reader="segmentation",
        )


def test_a_case_that_is_not_from_dicom_has_no_seg(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must come from DICOM"):
        export_seg(tmp_path / "seg.dcm", masks(overlap=False), grid(SHAPE, (1, 1, 1)), {"kind": "nifti"})


def test_rows_of_any_length_can_be_written_and_read(tmp_path: Path) -> None:
    shape = (3, 143, 161)
    write_noise(tmp_path / "ct", grid(shape, (2.5, 1.0, 1.0)))
    draft = find_sources(tmp_path).sources[0].read(no_progress)
    mask = np.random.default_rng(5).random(shape) > 0.5
    export_seg(tmp_path / "seg.dcm", [("Noise", mask)], draft.image.grid, draft.private)
    (annotation,) = find_sources(tmp_path).sources[0].read(no_progress).annotations
    assert annotation.mask is not None
    assert np.array_equal(annotation.mask(), mask)


def test_overlapping_segments_on_rows_of_any_length_come_back(tmp_path: Path) -> None:
    """One bit per pixel: frames of 35 pixels neither begin nor end with a byte."""
    shape = (4, 5, 7)
    write_noise(tmp_path / "ct", grid(shape, (2.5, 1.0, 1.0)))
    draft = find_sources(tmp_path).sources[0].read(no_progress)
    truth = [(name, np.random.default_rng(k).random(shape) > 0.5) for k, name in enumerate("AB")]
    assert export_seg(tmp_path / "seg.dcm", truth, draft.image.grid, draft.private) == "BINARY"
    again = find_sources(tmp_path).sources[0].read(no_progress)
    for annotation, (_, mask) in zip(again.annotations, truth, strict=True):
        assert annotation.mask is not None
        assert np.array_equal(annotation.mask(), mask)
