"""Real studies come in whole: sarcoma CT with RTSTRUCT, LIDC with its four readers."""

import pytest

from consilium.importers.sources import find_sources
from consilium.types import no_progress
from tests.data import unpacked


def test_a_sarcoma_study_is_placed_by_coordinates_although_its_references_dangle() -> None:
    (source,) = find_sources(unpacked("sts/STS_008")).sources
    draft = source.read(no_progress)
    (annotation,) = draft.annotations
    assert annotation.structure == "GTV_Mass_CT"
    assert annotation.mask is not None
    assert annotation.mask().any()
    assert "missing-references" in {f.code for f in draft.findings}
    assert draft.private["kind"] == "dicom"
    assert len(draft.private["slices"]) == draft.image.grid.shape_zyx[0]
    positions = [s["position_lps_mm"] for s in draft.private["slices"]]
    assert abs(draft.image.grid.affine.to_points((7, 0, 0)) - positions[7]).max() < 0.01


@pytest.mark.slow
def test_lidc_0001_has_its_four_readers_and_agreement_levels() -> None:
    (source,) = find_sources(unpacked("lidc/LIDC-IDRI-0001")).sources
    draft = source.read(no_progress)
    counts = {a.reader: int((a.mask() != 0).sum()) for a in draft.annotations if a.mask is not None}
    readers = sorted(n for reader, n in counts.items() if reader.startswith("reader"))
    assert readers == sorted([5905, 4613, 4955, 5498])
    assert [counts[f"agreement-{k}"] for k in (1, 2, 3, 4)] == [6547, 5428, 4812, 4184]
    assert (int(draft.image.array.min()), int(draft.image.array.max())) == (-2048, 3071)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 13))
def test_every_sarcoma_study_comes_in(number: int) -> None:
    found = find_sources(unpacked(f"sts/STS_{number:03d}"))
    assert not found.refused
    (source,) = found.sources
    (annotation,) = source.read(no_progress).annotations
    assert annotation.mask is not None
    assert annotation.mask().any()
