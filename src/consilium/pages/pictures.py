"""Pictures of slices with contours, and of curves: PNG bytes, drawn the same way everywhere."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MplFigure

from consilium.types import Array, Mask

COLOURS = (
    *("#e6194b", "#3cb44b", "#6f8cff", "#f58231", "#c86bff", "#42d4f4", "#f032e6", "#bfef45", "#fabed4"),
    *("#ffe119", "#469990", "#dcbeff", "#b07a3c", "#fffac8", "#d0453a", "#aaffc3", "#9a9a24", "#ffd8b1"),
)
"""One per structure, in order; told apart on grey by hue and lightness."""

SOFT_TISSUE_HU = (-160.0, 240.0)
LUNG_HU = (-1350.0, 150.0)
DPI = 110
PANEL_INCHES = 3.6


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One slice with outlines.

    Args:
        title: Above the picture.
        image: (Y, X).
        outlines: Label -> mask (Y, X); drawn as the mask's outline.
        spacing_yx: Size of a pixel, so that anisotropic slices look right.
        window: Values shown black and white.
        dashed: Labels drawn dashed, e.g. the reference beside the prediction.
    """

    title: str
    image: Array
    outlines: Mapping[str, Mask]
    spacing_yx: tuple[float, float] = (1.0, 1.0)
    window: tuple[float, float] = SOFT_TISSUE_HU
    dashed: frozenset[str] = frozenset()


def draw_panels(
    panels: Sequence[Panel], *, columns: int = 3, colours: Mapping[str, str] | None = None
) -> bytes:
    """A PNG of slices side by side.

    Returns:
        PNG bytes; one empty frame if there are no panels.
    """
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    heights = [_height(panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure = MplFigure(figsize=(PANEL_INCHES * columns, sum(heights)), layout="constrained")
    axes = np.atleast_1d(np.array(figure.subplots(rows, columns, height_ratios=heights))).reshape(-1)
    labels = list(dict.fromkeys(label for panel in panels for label in panel.outlines))
    colour_of = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)} | dict(colours or {})
    for axis in axes:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, colour_of)
    handles = [_line(colour_of[label], any(label in p.dashed for p in panels)) for label in labels]
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=8)
    return _png(figure)


def _height(row: Sequence[Panel]) -> float:
    """Inches of a row of panels with their titles: as high as its highest, but no higher than wide."""
    sizes = [np.multiply(panel.image.shape, panel.spacing_yx) for panel in row]
    return PANEL_INCHES * min(1.0, max((float(y / x) for y, x in sizes), default=1.0)) + 0.3


def draw_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> bytes:
    """A PNG of named curves: name -> (x values, y values); ``marks`` are named vertical lines."""
    figure = MplFigure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for index, (name, (x, y)) in enumerate(curves.items()):
        axis.plot(x, y, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1.6)
    for name, position in (marks or {}).items():
        axis.axvline(position, color="#555555", linestyle=":", linewidth=1.2)
        axis.annotate(
            name,
            (position, 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            rotation=90,
            va="top",
            ha="right",
        )
    axis.set(title=title, xlabel=x_label, ylabel=y_label)
    if y_limits is not None:
        axis.set_ylim(*y_limits)
    axis.grid(alpha=0.3)
    if curves:
        axis.legend(fontsize=8, loc="best")
    return _png(figure)


def _draw_panel(axis: Any, panel: Panel, colour_of: Mapping[str, str]) -> None:
    low, high = panel.window
    aspect = panel.spacing_yx[0] / panel.spacing_yx[1]
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    for label, mask in panel.outlines.items():
        if mask.any():
            style = "--" if label in panel.dashed else "-"
            axis.contour(
                mask.astype(np.float32),
                levels=[0.5],
                colors=[colour_of[label]],
                linewidths=1.3,
                linestyles=[style],
            )
    axis.set_title(panel.title, fontsize=9)


def _line(colour: str, dashed: bool) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([0], [0], color=colour, linestyle="--" if dashed else "-")


def _png(figure: MplFigure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
