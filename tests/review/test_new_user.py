"""From what a demo leaves to an accepted contour, by what stands on the page alone; nothing else is known."""

from pathlib import Path
from typing import Any

import pydicom
import pytest

from consilium.cli.console import run_verb
from consilium.cli.review import export_accepted, with_cases
from consilium.cli.verbs import build_command
from consilium.inference.model import save_model
from consilium.phantoms.dicom import SeriesIdentity, write_series
from consilium.phantoms.pelvis import HOSPITALS, build_cohort
from consilium.review.places import find_places
from tests.inference.models import small_model
from tests.review.folders import write_run
from tests.review.server import CHROMIUM_ARGUMENTS, find_chromium, serving_places

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed"),
]


@pytest.fixture
def demo_output(tmp_path: Path) -> Path:
    """A run, and an image that a model contoured."""
    out = tmp_path / "demo-output"
    write_run(out / "run")
    model = small_model()
    save_model(out / "m.consilium", model.description, model.network.state_dict())
    image = build_cohort(HOSPITALS[1], 1, seed=5)[0].image
    write_series(out / "unseen", image, SeriesIdentity(label="P1"))
    words = ["contour", out / "m.consilium", out / "unseen", out / "contoured"]
    assert run_verb(build_command(), [str(word) for word in words]) == 0
    return out


def walk(page: Any) -> int:
    """Accept and export the first contour, acting on visible text only; the number of clicks and fields."""
    page.get_by_role("link", name="Look and decide").first.click()
    page.get_by_role("button", name="Got it").click()
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("Fill in your name").wait_for()
    page.get_by_placeholder("Your name").fill("Dr New")
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("1 of ").first.wait_for()
    page.get_by_role("button", name="Export accepted").click()
    page.get_by_text("Wrote ").wait_for()
    return 6


def test_a_new_user_accepts_and_exports_a_contour(demo_output: Path) -> None:
    places = [with_cases(place) for place in find_places(demo_output)]
    with serving_places(places, export_accepted) as address, playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(find_chromium()), args=CHROMIUM_ARGUMENTS)
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.goto(address)
        walk(page)
        browser.close()
    (written,) = (demo_output / "contoured").rglob("exports/*.dcm")
    structures = pydicom.dcmread(written)
    assert [str(roi.ROIName) for roi in structures.StructureSetROISequence] == ["Bladder"]
    assert structures.ApprovalStatus == "UNAPPROVED"
    assert "accepted by Dr New" in structures.to_json()
