"""Runs, federations and contoured images on the page: what is said is what their files say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from consilium.cases.dataset import create_dataset
from consilium.cases.nifti import write_nifti
from consilium.errors import DataError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.pages.page import Section, TableBlock, write_page
from consilium.review import case_list
from consilium.review.app import build_app
from consilium.review.decisions_page import decision_sections
from consilium.review.federation_page import site_lines
from consilium.review.places import Kind, find_places
from consilium.review.run_page import run_sections, say_duration, seconds_left
from consilium.review.store import Decision, Recorded, Verdict
from tests.cases.drafts import draft
from tests.review.folders import NAMES, event, write_contoured, write_federation, write_run

PORT, TOKEN = 8124, "t" * 43


@contextmanager
def looking_at(folder: Path) -> Iterator[TestClient]:
    app = build_app(find_places(folder), token=TOKEN, port=PORT, export=lambda *_: Path("out.dcm"))
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        assert client.get(f"/?token={TOKEN}").status_code == 200
        yield client


def rows_of(sections: list[Section], title: str) -> list[tuple[object, ...]]:
    tables = [b for s in sections for b in s.blocks if isinstance(b, TableBlock) and b.title == title]
    return [tuple(row) for row in tables[0].rows]


@pytest.mark.parametrize("content", ["[1]", "{// a comment"])
def test_a_config_of_another_program_does_not_hide_what_is_ours(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(content)
    assert [place.kind for place in find_places(tmp_path)] == [Kind.RUN]


def test_a_run_says_how_far_it_is_and_how_long_it_will_take(tmp_path: Path) -> None:
    now = dict(rows_of(run_sections(write_run(tmp_path / "run")), "Now"))
    assert now["steps"] == 50
    assert now["time left"] == "5 min"
    assert now["mean validation Dice, kept"] == 0.4
    assert now["kept at step"] == 40


@pytest.mark.parametrize(
    ("budget", "left"),
    [({"minutes": 3}, 120.0), ({"steps": 40}, 180.0), ({"epochs": 2}, 60.0), ({"minutes": 0.5}, 0.0)],
)
def test_the_time_left_follows_from_the_budget(budget: dict[str, float], left: float) -> None:
    assert seconds_left(budget, {"elapsed_s": 60.0, "step": 10, "epoch": 1.0}) == left


def test_an_unknown_time_is_called_so() -> None:
    assert say_duration(seconds_left({}, {"elapsed_s": 1.0})) == "unknown"


def test_a_run_shows_every_structure_escaped_with_its_numbers(tmp_path: Path) -> None:
    with looking_at(write_run(tmp_path / "run")) as client:
        page = client.get("/").text
        assert client.get("/place/0/case/case-a").status_code == 404
    assert "Rectum &amp; &lt;b&gt;" in page
    assert "<b>" not in page
    for name in NAMES[2:]:
        assert name in page
    assert page.count("data:text/csv") >= 6
    assert "style=" not in page
    assert not re.search(r"<script(?![^>]* src=)", page), "no script stands in the page itself"


def test_a_run_without_any_validation_has_a_page(tmp_path: Path) -> None:
    with looking_at(write_run(tmp_path / "run", validations=0)) as client:
        assert "No validation yet" in client.get("/").text


def test_who_is_here_and_who_is_late(tmp_path: Path) -> None:
    with looking_at(write_federation(tmp_path / "federation")) as client:
        page = client.get("/").text
    assert "must be &lt;finite&gt;" in page
    for name, now in [("east", "counted"), ("north", "late"), ("south", "refused")]:
        assert re.search(rf"<td>{name}</td><td>{now}</td>", page), name


def test_a_round_that_was_opened_again_counts_once() -> None:
    events = [
        event("opened", 0),
        event("accepted", 0, site="east"),
        event("opened", 0),
        event("accepted", 0, site="north"),
    ]
    lines = {line.name: line for line in site_lines(["east", "north"], events, {})}
    assert (lines["east"].rounds_counted, lines["north"].rounds_counted) == (0, 1)
    assert (lines["east"].now, lines["north"].now) == ("not heard of", "counted")


def test_contours_in_doubt_come_first_and_missing_ones_are_marked(tmp_path: Path) -> None:
    folder = write_contoured(tmp_path / "contoured")
    grid = Grid((4, 6, 8), Affine.from_spacing((3.0, 1.0, 1.0)))
    mask = np.zeros(grid.shape_zyx, dtype=bool)
    mask[1:3, 2:4, 2:6] = True
    write_nifti(folder / "Bladder.nii.gz", Volume(mask, grid))
    with looking_at(folder) as client:
        page = client.get("/").text
    assert re.search(r'<tr class="flagged"><td>Rectum</td>', page)
    assert "data:image/png" in page


def test_a_demo_folder_shows_its_dataset_and_the_rest(tmp_path: Path) -> None:
    create_dataset(tmp_path / "dataset").add(draft())
    write_run(tmp_path / "run")
    write_contoured(tmp_path / "contoured")
    (tmp_path / "notes").mkdir()
    write_page(tmp_path / "evaluation.html", "Evaluation", [Section(title="Figures <b>")])
    with looking_at(tmp_path) as client:
        home = client.get("/").text
        for number, name in enumerate(["contoured", "dataset", "run", "evaluation"]):
            assert f'href="/place/{number}/"' in home
            assert name in home
            assert client.get(f"/place/{number}/").status_code == 200
        assert client.get("/place/4/").status_code == 404
        assert client.get("/place/0/case/case-0000000000000000").status_code == 404


def test_a_page_that_a_verb_wrote_is_shown_in_a_sandbox(tmp_path: Path) -> None:
    write_page(tmp_path / "study.html", "Study", [Section(title="Result")])
    (tmp_path / "other.html").write_text("<title>not ours</title>")
    with looking_at(tmp_path) as client:
        assert '<iframe title="study" src="/place/0/page">' in client.get("/").text
        answer = client.get("/place/0/page")
        assert "Result" in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-downloads;")
        assert "script" not in policy
        assert client.get("/place/1/").status_code == 404


def test_two_datasets_are_shown_side_by_side_and_keep_their_cases_apart(tmp_path: Path) -> None:
    one, _ = create_dataset(tmp_path / "north").add(draft())
    other, _ = create_dataset(tmp_path / "sites" / "south").add(draft(2))
    with looking_at(tmp_path) as client:
        assert client.get(f"/place/0/case/{one.case_id}").status_code == 200
        assert client.get(f"/place/1/case/{other.case_id}").status_code == 200
        assert client.get(f"/place/0/case/{other.case_id}").status_code == 404
        assert "sites/south" in client.get("/").text


def test_the_list_is_paged_and_sorted_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_list, "CASES_A_PAGE", 2)
    dataset = create_dataset(tmp_path / "dataset")
    for number in range(1, 4):
        dataset.add(draft(number))
    with looking_at(tmp_path / "dataset") as client:
        first, second = (client.get(f"/place/0/?sort=case&page={k}").text for k in (1, 2))
        for k, case_id in enumerate(dataset.case_ids):
            assert (f"{case_id}</a>" in first) == (k < 2)
            assert (f"{case_id}</a>" in second) == (k == 2)
        for odd in ("?page=99", "?page=x", "?sort=nothing"):
            assert client.get(f"/place/0/{odd}").status_code == 200


def test_decisions_are_summed_up_with_the_time_they_took() -> None:
    def recorded(number: int, **changes: object) -> Recorded:
        fields: dict[str, object] = {
            "request_id": str(number),
            "case_id": "case-1",
            "structure": "Bladder",
            "reader": "clinical",
            "verdict": Verdict.ACCEPTED,
            "person": "Dr Who",
            "seconds_spent": 10.0 * number,
        }
        decision = Decision(**(fields | changes))  # type: ignore[arg-type]
        return Recorded(number=number, time_utc="2026-11-25T03:00:00.000+00:00", decision=decision)

    history = [recorded(1), recorded(2, verdict=Verdict.CORRECTED, contour_changed_mm=40.0), recorded(3)]
    sections = decision_sections(history)
    assert rows_of(sections, "Decisions and the work they took") == [
        ("Bladder", 3, 2, 1, 0, 20.0, 60.0, 40.0)
    ]
    assert [row[7] for row in rows_of(sections, "History")] == [30.0, 20.0, 10.0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a dataset, a run"):
        find_places(tmp_path)


def test_a_dataset_without_cases_has_a_page(tmp_path: Path) -> None:
    create_dataset(tmp_path / "dataset")
    with looking_at(tmp_path / "dataset") as client:
        assert "has no case yet" in client.get("/").text
