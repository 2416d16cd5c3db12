"""A run's report stands alone and says what the run's files say."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from consilium.cli.report import find_evaluations, report_sections, write_pdf
from consilium.errors import ConfigurationError
from consilium.pages.page import Section, TableBlock, render_page, write_page
from consilium.pages.pictures import draw_panels
from tests.review.folders import write_run


def write_evaluation(folder: Path) -> Path:
    """Bladder of three cases: 0.9, 0.5, and one where nothing was compared."""
    folder.mkdir()
    interval = {"estimate": 0.7, "low": 0.5, "high": 0.9}
    nothing = {"estimate": None, "low": None, "high": None}
    fields = ("surface_dice", "hd95_mm", "mean_surface_distance_mm", "added_path_length_mm")
    summary = {
        "cases": 3,
        "empty_reference": 0,
        "empty_prediction": 1,
        "empty_both": 0,
        "figures": {"dice": interval} | dict.fromkeys(fields, nothing),
    }
    cases = [
        {"case_id": f"case-{k}", "structure": "Bladder", "dice": dice}
        for k, dice in enumerate((0.9, 0.5, None))
    ]
    record = {
        "model": "f00d",
        "definitions": "As <defined>.",
        "structures": {"Bladder": summary},
        "cases": cases,
    }
    (folder / "evaluation.json").write_text(json.dumps(record))
    png = base64.b64encode(draw_panels([])).decode()
    caption = "Bladder, lowest Dice first: reference dashed, prediction drawn through."
    page = f'<img src="data:image/png;base64,{png}" alt="{caption}">'
    (folder / "evaluation.html").write_text(page)
    return folder


def test_a_report_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert find_evaluations(run, []) == []
    page = render_page("r", report_sections(run, [], fingerprint="abc"))
    assert "consilium evaluate run DATASET evaluation" in page
    for title in ("Limits of use", "Data card", "Model card", "Split", "Made with"):
        assert f"<h2>{title}</h2>" in page


def test_results_come_with_intervals_and_the_worst_case_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    evaluation = write_evaluation(tmp_path / "evaluation")
    assert find_evaluations(run, []) == [evaluation]
    page = render_page("r", report_sections(run, [evaluation], fingerprint="abc"))
    assert "0.5 to 0.9" in page
    assert page.index("<td>case-1</td>") < page.index("<td>case-0</td>")
    assert "<td>case-2</td>" not in page, "what was not measured is not among the worst"
    assert page.count("data:image/png") == 1
    assert "f00d" in page
    assert "As &lt;defined&gt;." in page
    assert re.search(r"<td>seed</td><td>7</td>", page)


def rows_of(sections: list[Section], title: str) -> list[tuple[object, ...]]:
    tables = [b for s in sections for b in s.blocks if isinstance(b, TableBlock) and b.title == title]
    return [tuple(row) for row in tables[0].rows]


def test_sites_stand_side_by_side_with_an_interval_each(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    places = [write_evaluation(tmp_path / name) for name in ("north", "south")]
    sections = report_sections(run, places, fingerprint="abc")
    rows = rows_of(sections, "Dice per structure and site")
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("Bladder", "north", 3, pytest.approx(0.7)),
        ("Bladder", "south", 3, pytest.approx(0.7)),
    ]
    assert rows[0][4] == "0.5 to 0.9"
    assert rows[0][5] == 0.5
    assert [row[0] for row in rows_of(sections, "The 4 worst contours by Dice")] == ["north", "south"] * 2


def test_sites_whose_evaluations_have_one_name_are_told_apart(tmp_path: Path) -> None:
    run, places = write_run(tmp_path / "run"), []
    for site in ("north", "south"):
        (tmp_path / site).mkdir()
        places.append(write_evaluation(tmp_path / site / "results"))
    sections = report_sections(run, places, fingerprint="abc")
    rows = rows_of(sections, "Dice per structure and site")
    assert [row[1] for row in rows] == ["north/results", "south/results"]
    with pytest.raises(ConfigurationError, match="named once"):
        report_sections(run, [places[0], places[0]], fingerprint="abc")


def test_one_evaluation_is_split_by_scanner_where_there_are_several(tmp_path: Path) -> None:
    run, place = write_run(tmp_path / "run"), write_evaluation(tmp_path / "evaluation")
    record = json.loads((place / "evaluation.json").read_text())
    record["scanners"] = {"case-0": "Acme One", "case-1": "Bolt Two", "case-2": "Bolt Two"}
    (place / "evaluation.json").write_text(json.dumps(record))
    rows = rows_of(report_sections(run, [place], fingerprint="abc"), "Dice per structure and scanner")
    assert [(row[1], row[2], row[3]) for row in rows] == [("Acme One", 1, 0.9), ("Bolt Two", 2, 0.5)]
    assert rows[0][4] == "–", "one patient gives no interval"


def test_an_evaluation_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must hold evaluation\.json"):
        find_evaluations(write_run(tmp_path / "run"), [tmp_path / "nothing"])


def test_a_report_needs_no_other_file(tmp_path: Path) -> None:
    page = render_page("r", report_sections(write_run(tmp_path / "run"), [], fingerprint="abc"))
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_the_report_is_printed_where_chromium_is(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", "r", report_sections(write_run(tmp_path / "run"), [], fingerprint="a"))
    assert write_pdf(tmp_path / "r.html", tmp_path / "r.pdf")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")


def test_without_chromium_there_is_no_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not write_pdf(tmp_path / "r.html", tmp_path / "r.pdf")
