"""What a person does on the review page, done in a real browser: from opening a case to its export."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from consilium.cases.case import Case
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.cli.review import export_accepted
from consilium.geometry.contours import mask_from_polygons
from consilium.importers.rtstruct import annotations_from_rtstruct, read_rtstruct
from consilium.phantoms.pelvis import HOSPITALS, PhantomPatient, build_cohort
from tests.review.server import CHROMIUM_ARGUMENTS, find_chromium, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed"),
]


def draft_of(patient: PhantomPatient) -> CaseDraft:
    """A phantom patient whose bladder two readers drew; the second one 4 mm farther left."""
    grid = patient.image.grid
    positions = grid.affine.to_points([[z, 0, 0] for z in range(grid.shape_zyx[0])])
    shifted = [polygon + np.array([4.0, 0, 0]) for polygon in patient.contours["Bladder"]]
    annotations = [
        AnnotationDraft(
            structure=name, reader="clinical", mask=lambda p=polygons: mask_from_polygons(p, grid)
        )
        for name, polygons in patient.contours.items()
    ]
    annotations.append(
        AnnotationDraft(
            structure="Bladder", reader="reader-2", mask=lambda: mask_from_polygons(shifted, grid)
        )
    )
    return CaseDraft(
        source_identity=patient.label,
        patient_identity=patient.label,
        image=patient.image,
        modality="CT",
        annotations=tuple(annotations),
        importer="phantom",
        source_sha256={"series": patient.label},
        private={
            "kind": "dicom",
            "patient": {"PatientName": "Phantom^One", "PatientID": "P1"},
            "study": {"StudyInstanceUID": "1.2.3.1"},
            "series": {
                "SeriesInstanceUID": "1.2.3.2",
                "FrameOfReferenceUID": "1.2.3.3",
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            },
            "slices": [
                {"sop_instance_uid": f"1.2.3.2.{z}", "position_lps_mm": positions[z].tolist()}
                for z in range(len(positions))
            ],
        },
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = create_dataset(tmp_path / "dataset")
    for patient in build_cohort(HOSPITALS[0], 2, seed=3):
        dataset.add(draft_of(patient))
    return dataset


@pytest.fixture
def page(dataset: Dataset) -> Iterator[Any]:
    problems: list[str] = []
    with serving(dataset, export_accepted) as address, playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(find_chromium()), args=CHROMIUM_ARGUMENTS)
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if "Content Security" in m.text else None)
        page.goto(address)
        yield page
        browser.close()
    assert problems == []


def open_case(page: Any) -> str:
    link = page.locator("tbody a", has_text="case-").first
    case_id: str = link.inner_text()
    link.click()
    page.locator(".source.selected").wait_for()
    page.wait_for_function(  # the first contour to arrive may move the slice
        """() => window.consilium.view.selected?.mask
        && window.consilium.panes[0].element.dataset.drawn === `axial/${window.consilium.view.position[0]}`"""
    )
    return case_id


def state(page: Any, expression: str) -> Any:
    return page.evaluate(f"() => window.consilium.{expression}")


def choose(page: Any, structure: str, reader: str) -> None:
    page.locator(f'.source[data-structure="{structure}"][data-reader="{reader}"]').click()
    page.wait_for_function(
        "([s, r]) => window.consilium.view.selected?.structure === s"
        " && window.consilium.view.selected.reader === r && window.consilium.view.selected.mask",
        arg=[structure, reader],
    )


def becomes(page: Any, expression: str, value: object) -> None:
    """Wait until an expression of ``window.consilium`` has a value; a slow machine may take its time."""
    page.wait_for_function(
        f"value => JSON.stringify(window.consilium.{expression}) === JSON.stringify(value)", arg=value
    )


def drawn(page: Any, key: str) -> None:
    page.locator(f'.pane.main[data-drawn="{key}"]').wait_for()


def said(page: Any, text: str) -> None:
    page.locator("#message", has_text=text).wait_for()


def test_scrolling_and_windows_follow_the_keyboard_and_the_wheel(page: Any, dataset: Dataset) -> None:
    open_case(page)
    before = state(page, "view.position[0]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("PageDown")
    assert state(page, "view.position[0]") == before + 11
    page.locator(".pane.main canvas").hover()
    page.mouse.wheel(0, -120)
    becomes(page, "view.position[0]", before + 10)
    drawn(page, f"axial/{before + 10}")
    page.keyboard.press("w")
    becomes(page, "view.low", -1350)
    page.keyboard.press("2")
    page.locator('.pane.main[data-plane="coronal"]').wait_for()
    drawn(page, f"coronal/{state(page, 'view.position[1]')}")


def test_a_key_without_a_focused_element_still_counts(page: Any) -> None:
    open_case(page)
    before = state(page, "view.position[0]")
    page.evaluate("() => document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown' }))")
    assert state(page, "view.position[0]") == before + 1


def test_the_picture_shows_the_image_where_the_patient_is(page: Any, dataset: Dataset) -> None:
    case = dataset.case(open_case(page))
    volume, _ = dataset.load_image(case).to_canonical()
    index = state(page, "view.position[0]")
    page.keyboard.press("o")
    grey = page.evaluate(
        """() => { const p = window.consilium.panes[0].picture, c = p.getContext('2d');
        return Array.from(c.getImageData(0, 0, p.width, p.height).data.filter((_, i) => i % 4 === 0)); }"""
    )
    expected = np.clip((volume.array[index].astype(float) + 160) * 255 / 400, 0, 255).astype(int)
    assert np.abs(np.array(grey).reshape(expected.shape) - expected).max() <= 1


def test_letters_say_where_the_patient_is_right_and_left(page: Any) -> None:
    """The voxels under two corners of each view lie to each other as the letters at its edges say."""
    open_case(page)
    page.locator('.pane[data-sides="APSI"]').wait_for()
    views = page.evaluate(
        """() => window.consilium.panes.map((pane) => {
        const box = pane.canvas.getBoundingClientRect();
        const from = pane.voxel({ clientX: box.left, clientY: box.top });
        const to = pane.voxel({ clientX: box.right, clientY: box.bottom });
        return { sides: pane.element.dataset.sides, axes: [pane.u, pane.v],
                 grows: [to.u > from.u, to.v > from.v] }; })"""
    )
    # Axes of the canonical image: Z towards Superior, Y towards Posterior, X towards Left.
    ends = {0: "IS", 1: "AP", 2: "RL"}
    for view in views:
        letters = [ends[axis] if grows else ends[axis][::-1]
                   for axis, grows in zip(view["axes"], view["grows"], strict=True)]  # fmt: skip
        assert view["sides"] == "".join(letters)
    assert {view["sides"] for view in views} == {"RLAP", "RLSI", "APSI"}


def test_two_readers_are_compared_and_the_worst_slice_is_one_click_away(page: Any, dataset: Dataset) -> None:
    case = dataset.case(open_case(page))
    choose(page, "Bladder", "clinical")
    one, two = (dataset.load_mask(case, "Bladder", reader) for reader in ("clinical", "reader-2"))
    dice = 2 * (one & two).sum() / (one.sum() + two.sum())
    text = page.locator("#worst").inner_text()
    assert f"Dice {dice:.3f}" in text
    differing = (one ^ two).sum(axis=(1, 2))
    page.locator("#worst").click()
    becomes(page, "view.position[0]", int(differing.argmax()))
    assert differing[state(page, "view.position[0]")] == differing.max()
    assert f"{differing.max()} voxels" in text


def draw(page: Any, dx: float, dy: float) -> None:
    box = page.locator(".pane.main canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2 + dx, box["y"] + box["height"] / 2 + dy
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=6)
    page.mouse.up()
    page.wait_for_function("() => !document.querySelector('#save').disabled")


def count(page: Any) -> int:
    return int(page.evaluate("() => window.consilium.view.selected.mask.bytes.reduce((a, b) => a + b, 0)"))


def test_correcting_accepting_and_exporting_gives_an_rtstruct_with_that_contour(
    page: Any, dataset: Dataset
) -> None:
    case_id = open_case(page)
    choose(page, "Rectum", "clinical")
    before = count(page)
    page.keyboard.press("b")
    draw(page, -120, 60)
    drawn = count(page)
    assert drawn > before
    draw(page, 100, -60)
    page.keyboard.press("z")
    assert count(page) == drawn, "undo takes back the last stroke only"
    page.keyboard.press("c")
    said(page, "Fill in your name")
    page.fill("#person", "Dr Test")
    page.fill("#reason", "gas <b>moved</b>")
    page.locator("#save").click()
    page.locator(".source", has_text="correction-1").wait_for()
    case = dataset.case(case_id)
    assert int(dataset.load_mask(case, "Rectum", "clinical").sum()) == before, "the original is untouched"
    corrected = dataset.load_mask(case, "Rectum", "correction-1")
    assert int(corrected.sum()) == drawn
    page.locator("#history", has_text="<b>moved</b>").wait_for()
    choose(page, "Bladder", "clinical")
    page.keyboard.press("a")
    page.locator(".verdict.accepted").wait_for()
    page.keyboard.press("x")
    page.wait_for_function("() => document.querySelector('#message').textContent.startsWith('Wrote')")
    check_export(dataset, case, corrected)


def check_export(dataset: Dataset, case: Case, corrected: np.ndarray) -> None:
    path = dataset.folder / "review" / "exports" / f"{case.case_id}.dcm"
    placed = annotations_from_rtstruct(
        read_rtstruct(path), case.image.grid, sop_uids=[], frame_of_reference_uid="1.2.3.3"
    )
    masks = {a.structure: a.mask() for a in placed.annotations if a.mask is not None}
    assert set(masks) == {"Bladder", "Rectum"}
    written = pydicom.dcmread(path).to_json()
    today = datetime.now(UTC).date().isoformat()
    assert f"Rectum: corrected by Dr Test {today}" in written
    assert f"Bladder: accepted by Dr Test {today}" in written
    assert np.array_equal(masks["Rectum"], corrected)
    assert np.array_equal(masks["Bladder"], dataset.load_mask(case, "Bladder", "clinical"))


def test_fill_between_and_smooth_do_what_they_say(page: Any, dataset: Dataset) -> None:
    open_case(page)
    choose(page, "Prostate", "clinical")
    start, stop = state(page, "view.selected.mask.start[0]"), state(page, "view.selected.mask.stop[0]")
    hole = (start + stop) // 2
    page.evaluate(
        """z => { const m = window.consilium.view.selected.mask; const [, ny, nx] = m.size();
        m.bytes.fill(0, (z - m.start[0]) * ny * nx, (z - m.start[0] + 1) * ny * nx); m.changed(); }""",
        hole,
    )
    neighbours = page.evaluate(
        "z => [z - 1, z + 1].map(k => window.consilium.view.selected.mask.slice('axial', k)"
        ".values.reduce((a, b) => a + b, 0))",
        hole,
    )
    page.keyboard.press("f")
    said(page, "voxels changed")
    filled = page.evaluate(
        "z => window.consilium.view.selected.mask.slice('axial', z).values.reduce((a, b) => a + b, 0)", hole
    )
    assert 0.9 * min(neighbours) <= filled <= 1.1 * max(neighbours)
    page.evaluate("() => document.querySelector('#message').replaceChildren()")
    page.keyboard.press("s")
    page.locator("#message", has_text=re.compile(r"\d+ voxels changed|Nothing to change")).wait_for()


def test_fill_between_does_not_depend_on_the_box_around_the_mask(page: Any) -> None:
    open_case(page)
    tight, roomy = page.evaluate(
        """async () => {
        const { MaskVolume } = await import('/static/mask.js');
        const { Editor } = await import('/static/edit.js');
        const fill = (edges) => {
          const count = (edges[3] - edges[0]) * (edges[4] - edges[1]) * (edges[5] - edges[2]);
          const mask = new MaskVolume([9, 30, 30], edges, new Uint8Array(Math.ceil(count / 8)));
          for (const [z, half] of [[0, 4], [8, 1]])
            for (let y = 15 - half; y <= 15 + half; y++)
              for (let x = 15 - half; x <= 15 + half; x++) mask.set(z, y, x, 1);
          new Editor(mask, [3, 1, 1]).fillBetween();
          const sum = (z) => mask.slice('axial', z).values.reduce((a, b) => a + b, 0);
          return Array.from({ length: 9 }, (_, z) => sum(z));
        };
        return [fill([0, 11, 11, 9, 20, 20]), fill([0, 0, 0, 9, 30, 30])]; }"""
    )
    assert tight == roomy
    assert tight == sorted(tight, reverse=True), "a cone between a large and a small square"
    assert 9 < tight[4] < 81


def test_what_is_drawn_while_a_correction_is_saved_is_not_shown_as_saved(page: Any, dataset: Dataset) -> None:
    case_id = open_case(page)
    choose(page, "Rectum", "clinical")
    page.keyboard.press("b")
    draw(page, -120, 60)
    page.fill("#person", "Dr Test")
    page.evaluate(
        """() => { const fetched = window.fetch;
        window.fetch = async (...given) => {
          if (String(given[0]).endsWith('/correct')) await new Promise((done) => { window.release = done; });
          return fetched(...given); }; }"""
    )
    page.locator("#save").click()
    page.wait_for_function("() => window.release")
    page.keyboard.press("b")
    draw(page, 100, -60)
    page.keyboard.press("z")
    page.evaluate("() => window.release()")
    said(page, "Saved as correction-1")
    choose(page, "Rectum", "correction-1")
    assert count(page) == np.count_nonzero(dataset.load_mask(dataset.case(case_id), "Rectum", "correction-1"))


def test_a_double_click_or_a_key_held_down_decides_about_one_structure(page: Any) -> None:
    open_case(page)
    page.fill("#person", "Dr Test")
    page.evaluate("() => document.activeElement.blur()")
    decided = "Object.keys(window.consilium.view.decisions).length"
    page.mouse.move(0, 0)
    box = page.locator("#accept").bounding_box()
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for clicks in (1, 2):
        page.mouse.move(*at)
        page.mouse.down(click_count=clicks)
        page.mouse.up(click_count=clicks)
        page.wait_for_function(f"() => {decided} > 0")
        said(page, "Next:")
    page.wait_for_timeout(500)
    assert page.evaluate(decided) == 1
    page.keyboard.down("a")
    page.wait_for_function(f"() => {decided} > 1")
    for _ in range(3):
        page.keyboard.down("a")
        page.wait_for_timeout(200)
    page.keyboard.up("a")
    assert page.evaluate(decided) == 2


def test_a_second_tab_that_is_behind_is_told_so(page: Any, dataset: Dataset) -> None:
    open_case(page)
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".source.selected").wait_for()
    for tab in (page, other):
        tab.fill("#person", "Dr Test")
    page.locator("#accept").click()
    page.locator(".verdict.accepted").wait_for()
    other.locator("#reject").click()
    other.locator("#message.bad").wait_for()
    assert "since this page was loaded" in other.locator("#message").inner_text()


def test_the_list_sorts_by_what_needs_a_look(page: Any, dataset: Dataset) -> None:
    page.wait_for_timeout(500)
    page.reload()
    assert "Dice 0." in page.locator("tbody").inner_text()
    page.get_by_role("link", name="Decided").click()
    assert page.url.endswith("sort=decided")
    page.get_by_role("link", name="Dice", exact=True).click()
    worst = page.locator("td.reasons a").first
    assert worst.inner_text() == "Bladder"
    worst.click()
    page.locator("#worst").wait_for()
    index = page.locator("#worst .soft").inner_text().split("(")[1].split(",")[0]
    page.wait_for_function("z => window.consilium.view.position[0] === z - 1", arg=int(index))


def test_markup_in_a_name_is_shown_and_not_run(tmp_path: Path) -> None:
    dataset = create_dataset(tmp_path / "marked")
    source = draft_of(build_cohort(HOSPITALS[0], 1, seed=3)[0])
    name = "<img src=x onerror=document.title='run'>"
    dataset.add(replace(source, annotations=(replace(source.annotations[0], structure=name),)))
    with serving(dataset, export_accepted) as address, playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(find_chromium()), args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.goto(address)
        open_case(page)
        assert name in page.locator("#sources").inner_text()
        assert page.title().startswith("case-")
        assert page.locator("img[src=x]").count() == 0
        browser.close()
