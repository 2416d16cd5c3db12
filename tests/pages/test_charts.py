"""Charts put points where their values say, escape names, and carry the numbers as CSV."""

import csv
import io
import re

import pytest

from consilium.pages.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, chart_csv, chart_svg
from consilium.pages.page import Section, render_page


def chart(**curves: tuple[list[float], list[float | None]]) -> Chart:
    return Chart(title="<t>", x_label="epoch", y_label="Dice", curves=curves, y_limits=(0.0, 1.0))


def test_the_corners_of_a_curve_lie_in_the_corners_of_the_chart() -> None:
    svg = chart_svg(chart(a=([0, 10], [0.0, 1.0])))
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    assert points.group(1) == f"{LEFT:.1f},{HEIGHT - BOTTOM:.1f} {WIDTH - RIGHT:.1f},{TOP:.1f}"


def test_a_missing_value_interrupts_the_curve() -> None:
    svg = chart_svg(chart(a=([0, 1, 2, 3, 4], [0.1, 0.2, None, float("nan"), 0.4])))
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1, "a lone point is drawn as one"


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5]])
def test_few_or_equal_values_still_give_a_chart(values: list[float | None]) -> None:
    flat = Chart(title="t", x_label="x", y_label="y", curves={"a": (list(range(len(values))), values)})
    assert chart_svg(flat).endswith("</svg>")


def test_names_are_escaped_in_the_page_and_defused_in_the_csv() -> None:
    name = '=<script>"&'
    shown = Chart(title=name, x_label=name, y_label=name, curves={name: ([1], [1 / 3])}, marks={name: 1})
    page = render_page("t", [Section(title="s", blocks=[shown])])
    assert "<script" not in page
    assert "style=" not in chart_svg(shown), "the review page's policy allows no inline style"
    rows = list(csv.reader(io.StringIO(chart_csv(shown))))
    assert rows[1] == [f"'{name}", "1", repr(1 / 3)]
