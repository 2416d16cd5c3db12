"""Curves as SVG: sharp in print, readable in dark and light by the page's colours, numbers as CSV."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 74, 12, 14, 40
COLOURS = 9
TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Named curves over one axis.

    Args:
        title: Above the chart.
        x_label: With its unit.
        y_label: With its unit.
        curves: Name -> (x values, y values), as long as each other; NaN and None interrupt a curve.
        y_limits: Lowest and highest value shown; by default what the curves hold.
        marks: Name -> x of a vertical line.
    """

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]]
    y_limits: tuple[float, float] | None = None
    marks: Mapping[str, float] = field(default_factory=dict)


def chart_csv(chart: Chart) -> str:
    """Every point as ``curve, x, y`` in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve", chart.x_label, chart.y_label])
    for name, (x, y) in chart.curves.items():
        safe = f"'{name}" if name[:1] in "=+-@" else name
        writer.writerows(
            (safe, a, "" if b is None or not math.isfinite(b) else b) for a, b in zip(x, y, strict=True)
        )
    return text.getvalue()


def legend(chart: Chart) -> list[tuple[str, str]]:
    """(class of the line, name) of every curve, in order."""
    return [(_style(k), name) for k, name in enumerate(chart.curves)]


def chart_svg(chart: Chart) -> str:
    """The chart as SVG without any style of its own: colours come from ``page.css``.

    Returns:
        Axes without curves if there is no point.
    """
    points = [
        (a, b)
        for x, y in chart.curves.values()
        for a, b in zip(x, y, strict=True)
        if b is not None and math.isfinite(b)
    ]
    xs = _limits([a for a, _ in points], None)
    ys = _limits([b for _, b in points], chart.y_limits)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_axes(chart, xs, ys),
    ]
    for name, at in chart.marks.items():
        place = _across(at, xs)
        parts.append(f'<line class="mark" x1="{place}" x2="{place}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        late = place > WIDTH / 2
        side = f'class="end" x="{place - 3:.1f}"' if late else f'x="{place + 3:.1f}"'
        parts.append(f'<text {side} y="{TOP + 9}">{escape(name)}</text>')
    for number, (x, y) in enumerate(chart.curves.values()):
        for piece in _pieces(x, y):
            path = " ".join(f"{_across(a, xs)},{_down(b, ys)}" for a, b in piece)
            parts.append(f'<polyline class="curve {_style(number)}" points="{path}"/>')
            if len(piece) == 1:
                a, b = piece[0]
                parts.append(
                    f'<circle class="{_style(number)}" cx="{_across(a, xs)}" cy="{_down(b, ys)}" r="3"/>'
                )
    return "\n".join([*parts, "</svg>"])


def _style(number: int) -> str:
    return f"c{number % COLOURS} d{number // COLOURS % 3}"


def _pieces(x: Sequence[float], y: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for a, b in zip(x, y, strict=True):
        if b is None or not math.isfinite(b):
            if piece:
                yield piece
            piece = []
        else:
            piece.append((a, b))
    if piece:
        yield piece


def _limits(values: Sequence[float], given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        return given
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _across(value: float, limits: tuple[float, float]) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _down(value: float, limits: tuple[float, float]) -> float:
    share = min(1.0, max(0.0, (value - limits[0]) / (limits[1] - limits[0])))
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _axes(chart: Chart, xs: tuple[float, float], ys: tuple[float, float]) -> Iterator[str]:
    for at in _ticks(ys):
        y = _down(at, ys)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4}">{at:.4g}</text>'
    for at in _ticks(xs):
        yield f'<text class="middle" x="{_across(at, xs)}" y="{HEIGHT - BOTTOM + 16}">{at:.4g}</text>'
    middle, centre = (TOP + HEIGHT - BOTTOM) / 2, (LEFT + WIDTH - RIGHT) / 2
    turned = f"translate(13 {middle}) rotate(-90)"
    yield f'<text class="middle" x="{centre}" y="{HEIGHT - 6}">{escape(chart.x_label)}</text>'
    yield f'<text class="middle" transform="{turned}">{escape(chart.y_label)}</text>'


def _ticks(limits: tuple[float, float]) -> list[float]:
    low, high = limits
    rough = (high - low) / TICKS
    if low == int(low) and high == int(high) and high - low > 1:
        rough = max(1.0, rough)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
