"""The commissioning report: passes as it is, fails when a contour is filled too wide."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from consilium.cli import commission_checks
from consilium.cli.commission import commission
from consilium.cli.commission_checks import Row, check_grid, check_lost_slices, standard_grid
from consilium.geometry.contours import PlacedPolygons
from consilium.phantoms.shapes import orientations
from consilium.types import Mask, Progress


def test_every_shape_passes_on_an_oblique_grid(tmp_path: Path) -> None:
    rows = check_grid("oblique", standard_grid(dict(orientations())["oblique"]), tmp_path)
    assert len(rows) == 8
    assert [row.fault for row in rows] == [""] * 8


def test_every_shape_passes_on_a_series_with_lost_slices(tmp_path: Path) -> None:
    rows = check_lost_slices(tmp_path)
    assert len(rows) == 5
    assert [row.fault for row in rows] == [""] * 5


def test_a_reader_that_paints_the_boundary_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = PlacedPolygons.fill

    def paint(placed: PlacedPolygons) -> Mask:
        cross = ndimage.generate_binary_structure(2, 1)
        return np.stack([ndimage.binary_dilation(plane, cross) for plane in fill(placed)])

    monkeypatch.setattr(PlacedPolygons, "fill", paint)
    rows = check_grid("SPL", standard_grid(dict(orientations())["SPL"]), tmp_path)
    faults = {row.shape: row.fault for row in rows}
    assert "volume" in faults["sphere"]
    assert "Dice" in faults["sphere"]
    assert "round trip" in faults["line along Z"]


def test_the_report_is_written_and_says_whether_it_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Row(
        grid="SPL", shape="sphere", paper_cm3=33.5, voxels_cm3=33.5, volume_error=0.0, dice=1.0,
        round_trip_dice=1.0, fewest_points=4, longest_string=9,
    )  # fmt: skip

    def checks(_scratch: Path, _progress: Progress) -> list[Row]:
        return [good]

    monkeypatch.setattr("consilium.cli.commission.check_everything", checks)
    commission(tmp_path)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert record["passed"]
    assert record["checks"][0]["shape"] == "sphere"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Signature" in page
    assert record["limits"]["min_dice"] == commission_checks.MIN_DICE
