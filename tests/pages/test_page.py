"""Pages are self-contained, escape every text, and carry their numbers as CSV."""

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from consilium.pages.page import Figure, Section, TableBlock, Text, render_page, table_csv, write_page
from consilium.pages.pictures import Panel, draw_curves, draw_panels

MARKUP = '<script>alert("x")</script>'


def test_every_text_is_escaped() -> None:
    png = draw_panels([])
    html = render_page(
        MARKUP,
        [
            Section(
                title=MARKUP,
                blocks=[
                    Text(text=MARKUP),
                    TableBlock(title=MARKUP, columns=[MARKUP], rows=[[MARKUP]], note=MARKUP),
                    Figure(caption=MARKUP, png=png),
                ],
            )
        ],
        subtitle=MARKUP,
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 9


def test_a_page_needs_no_other_file_and_no_network() -> None:
    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attributes if name in {"src", "href", "action"}]

    blocks = [TableBlock(title="t", columns=["a"], rows=[[1]]), Figure(caption="c", png=draw_panels([]))]
    page = render_page("title", [Section(title="one", blocks=blocks)])
    parser = Links()
    parser.feed(page)
    assert len(parser.found) == 2
    assert all(link.startswith("data:") for link in parser.found)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_a_table_is_saved_with_full_precision_and_without_formulas() -> None:
    table = TableBlock(title="t", columns=["name", "Dice"], rows=[["=HYPERLINK(1)", 1 / 3], ["b", None]])
    link = re.search(
        r'href="data:text/csv;base64,([^"]+)"', render_page("x", [Section(title="s", blocks=[table])])
    )
    assert link is not None
    text = base64.b64decode(link.group(1)).decode()
    assert text == table_csv(table)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == ["'=HYPERLINK(1)", repr(1 / 3)]
    assert rows[2] == ["b", ""]


def test_nan_is_shown_as_a_dash_and_flagged_rows_are_marked() -> None:
    table = TableBlock(title="t", columns=["a"], rows=[[float("nan")], [2.0]], flagged=frozenset({1}))
    html = render_page("x", [Section(title="s", blocks=[table])])
    assert '<td class="number">–</td>' in html
    assert re.search(r'<tr class="flagged"><td class="number">2\.000</td>', html)


def test_an_outline_is_drawn_in_its_colour_around_the_mask() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    panel = Panel(title="slice", image=np.zeros((40, 40)), outlines={"Bladder": mask})
    picture = matplotlib.image.imread(io.BytesIO(draw_panels([panel], colours={"Bladder": "#00ff00"})))
    green = (picture[..., 1] > 0.9) & (picture[..., 0] < 0.2) & (picture[..., 2] < 0.2)
    assert 200 < green.sum() < 5000


def test_curves_without_any_point_still_give_a_picture() -> None:
    assert draw_curves({}, title="t", x_label="epoch", y_label="Dice").startswith(b"\x89PNG")


def test_writing_replaces_the_page_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(path, "new", [])
    assert "<h1>new</h1>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("columns", [1, 3])
def test_anisotropic_pixels_keep_their_shape(columns: int) -> None:
    panel = Panel(title="coronal", image=np.zeros((20, 60)), outlines={}, spacing_yx=(3.0, 1.0))
    assert draw_panels([panel], columns=columns).startswith(b"\x89PNG")
