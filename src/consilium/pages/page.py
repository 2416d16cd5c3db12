"""Self-contained HTML pages: no script, no outside request, every text escaped, every table also as CSV."""

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

import consilium
from consilium.pages.charts import Chart, chart_csv, chart_svg, legend
from consilium.pages.numbers import format_number

RANGE = re.compile(r"-?[\d.]+ to -?[\d.]+")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; ``kind`` is ``"plain"``, ``"note"`` or ``"warning"``."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A table with a link that saves it as CSV.

    Args:
        title: Above the table.
        columns: Headings, with units.
        rows: Cells; numbers align to the right, None is an empty cell, NaN is shown as "–".
        note: Below the table.
        flagged: Numbers of rows (from 0) to mark as needing a look.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    flagged: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A PNG picture with a caption and, where there are numbers behind it, their CSV."""

    caption: str
    png: bytes
    csv_text: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with blocks below it."""

    title: str
    blocks: Sequence[Text | TableBlock | Figure | Chart] = field(default_factory=tuple)


def render_sections(sections: Sequence[Section]) -> Markup:
    """The sections as HTML, to stand in a page that has ``page.css``."""
    blocks = [(s, [(type(b).__name__, b) for b in s.blocks]) for s in sections]
    return Markup(_template("sections.html").render(sections=blocks))


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page as one HTML text that needs no other file and runs no script."""
    return _template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=[(section, None) for section in sections],
        body=render_sections(sections),
        style=(resources.files("consilium.pages") / "page.css").read_text(encoding="utf-8"),
        version=consilium.__version__,
    )


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = format_cell
    environment.filters["numeric"] = lambda value: isinstance(value, int | float)
    environment.filters["range"] = lambda value: isinstance(value, str) and RANGE.fullmatch(value) is not None
    environment.filters["number_columns"] = _number_columns
    environment.filters["csv_link"] = lambda table: _data_uri(table_csv(table).encode(), "text/csv")
    environment.filters["text_link"] = lambda text: _data_uri(text.encode(), "text/csv")
    environment.filters["chart_link"] = lambda chart: _data_uri(chart_csv(chart).encode(), "text/csv")
    environment.filters["png_link"] = lambda png: _data_uri(png, "image/png")
    environment.filters["svg"] = lambda chart: Markup(chart_svg(chart))
    environment.filters["legend"] = legend
    return environment.from_string((resources.files("consilium.pages") / name).read_text(encoding="utf-8"))


def write_page(path: Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> None:
    """Write `render_page` to ``path``, replacing it in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render_page(title, sections, subtitle=subtitle), encoding="utf-8")
    temporary.replace(path)


def table_csv(table: TableBlock) -> str:
    """The table as CSV in full precision; cells that a spreadsheet would run as a formula are quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if cell is None else _defused(cell) for cell in row] for row in table.rows])
    return text.getvalue()


def format_cell(value: object) -> str:
    """A cell as people read it: four digits, "–" for NaN, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return format_number(value)
    return str(value)


def format_range(low: float | None, high: float | None) -> str:
    """An interval as people read it: "0.12 to 0.34"; "–" where there is none."""
    if low is None or high is None or low != low or high != high:
        return "–"
    return " to ".join(f"{end:.0f}" if abs(end) >= 1000 else f"{end:.3g}" for end in (low, high))


def _number_columns(table: TableBlock) -> set[int]:
    """Columns without a word, which align to the right."""
    return {
        k
        for k in range(len(table.columns))
        if not any(isinstance(row[k], str) and row[k] for row in table.rows)
    }


def _defused(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@" else cell


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
