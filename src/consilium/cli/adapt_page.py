"""The page of ``consilium adapt``: what changed, which contours to check, and pictures of both days."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilium.adaptation.adapt import Adaptation
from consilium.adaptation.report import DayMasks, StructureChange, overall
from consilium.geometry.crop import Box
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.pages.page import Figure, Section, TableBlock, Text, write_page
from consilium.pages.pictures import Panel, draw_panels
from consilium.types import Array, Mask

MARGIN_MM = 40.0
AIR_HU = -1000.0
DIFFERENCE_HU = (-200.0, 200.0)
NOW, PROPAGATED, BEFORE = "now", "deformed only", "planning, moved rigidly"
COLOURS = {NOW: "#ffd23f", PROPAGATED: "#42d4f4", BEFORE: "#ff6b6b"}


@dataclass(frozen=True, eq=False)
class StructurePicture:
    """Two planes through one structure."""

    structure: str
    panels: tuple[Panel, ...]


def picture_of(masks: DayMasks, repeat: Volume) -> StructurePicture:
    """An axial and a coronal plane (by array axes) through the middle of a structure."""
    both = masks.final | masks.rigid
    box = Box.around(both)
    if box is None:
        return StructurePicture(masks.structure, ())
    centre = [(a + b - 1) // 2 for a, b in zip(box.start_zyx, box.stop_zyx, strict=True)]
    margin = [round(MARGIN_MM / s) for s in repeat.grid.spacing_zyx_mm]
    shown = box.grown((margin[0], margin[1], margin[2])).clipped(repeat.grid.shape_zyx).slices()
    panels = []
    for axis, name in ((0, "slice"), (1, "row")):
        spacing = [s for k, s in enumerate(repeat.grid.spacing_zyx_mm) if k != axis]
        window = tuple(part for k, part in enumerate(shown) if k != axis)

        def plane(
            array: Array, axis: int = axis, window: tuple[slice, ...] = window, at: int = centre[axis]
        ) -> Array:
            cut = np.asarray(np.take(array, at, axis=axis)[window])
            # Rows run to inferior: the head is on top, as in every viewer.
            return cut[::-1] if axis == 1 else cut

        outlines: dict[str, Mask] = {BEFORE: plane(masks.rigid)}
        if masks.source != "propagated":
            outlines[PROPAGATED] = plane(masks.propagated)
        outlines[NOW] = plane(masks.final)
        panels.append(
            Panel(
                title=f"{masks.structure}: {name} {centre[axis]}",
                image=plane(repeat.array),
                outlines=outlines,
                spacing_yx=(spacing[0], spacing[1]),
                dashed=frozenset({BEFORE, PROPAGATED}),
            )
        )
    return StructurePicture(masks.structure, tuple(panels))


def write_report(
    path: Path,
    adaptation: Adaptation,
    planning: Volume,
    repeat: Volume,
    changes: Sequence[StructureChange],
    pictures: Sequence[StructurePicture],
) -> None:
    """Write the page, in one file."""
    sections = [
        Section(title="Check this", blocks=_checks(changes)),
        Section(title="What changed", blocks=[_table(changes), Text(text=DEFINITIONS, kind="note")]),
        Section(title="Contours", blocks=_figures(pictures)),
        Section(title="Registration", blocks=_registration(adaptation, planning, repeat)),
    ]
    write_page(path, "Contours of a repeat CT", sections, subtitle="Proposals, not approved")


DEFINITIONS = (
    "Shift and surface distance compare with the planning contour after the rigid movement alone: they are "
    "what the set-up does not explain. Growth is the volume of tissue now per volume then, by the "
    "deformation, inside the structure and within 5 mm of it. A contour is propagated by the deformation "
    "alone, refined by a network for adaptation, or fused with a contouring network; agreement is the "
    "surface "
    "Dice at 2 mm between it and the propagated one. No reason to check is no approval: a person looks at "
    "every contour."
)


def _checks(changes: Sequence[StructureChange]) -> list[Text | TableBlock]:
    rows = [(change.structure, flag.reason) for change in changes for flag in change.flags]
    if not rows:
        return [Text(text="No contour gave a reason. Look at all of them all the same.")]
    flagged = len({structure for structure, _ in rows})
    text = f"{flagged} of {len(changes)} contours give a reason to look twice."
    return [
        Text(text=text, kind="warning"),
        TableBlock(title="Reasons", columns=["structure", "check this"], rows=rows),
    ]


def _table(changes: Sequence[StructureChange]) -> TableBlock:
    columns = [
        *(
            "structure",
            "contour",
            "planning (cm³)",
            "now (cm³)",
            "change (%)",
            "shift L P S (mm)",
        ),
        *("surface moved (mm)", "95 % (mm)", "growth", "folded", "agreement", "check"),
    ]
    rows = [
        (
            change.structure,
            change.source,
            change.planning_volume_cm3,
            change.volume_cm3,
            round(100 * (change.volume_cm3 / change.planning_volume_cm3 - 1), 1),
            " ".join(f"{value:+.1f}" for value in change.shift_lps_mm),
            round(change.surface_distance_mm, 2),
            round(change.surface_distance_95_mm, 2),
            " to ".join(f"{value:.2f}" for value in change.jacobian_range),
            change.folded_voxels,
            round(change.agreement, 2) if change.source != "propagated" else None,
            ", ".join(flag.code for flag in change.flags),
        )
        for change in changes
    ]
    flagged = frozenset(k for k, change in enumerate(changes) if change.flags)
    return TableBlock(title="Every structure", columns=columns, rows=rows, flagged=flagged)


def _figures(pictures: Sequence[StructurePicture]) -> list[Text | Figure]:
    shown = [p for p in pictures if p.panels]
    if not shown:
        return [Text(text="No contour lies in the repeat CT.", kind="warning")]
    return [
        Figure(
            caption=f"{picture.structure} on the repeat CT; red: where it would be had nothing changed.",
            png=draw_panels(picture.panels, columns=2, colours=COLOURS),
        )
        for picture in shown
    ]


def _registration(
    adaptation: Adaptation, planning: Volume, repeat: Volume
) -> list[Text | TableBlock | Figure]:
    figures = overall(adaptation.registration)
    low, high = figures["growth_range"]
    rows: list[tuple[str, object]] = [
        ("turn of the set-up (°)", round(figures["turn_deg"], 2)),
        (
            "median movement inside the body beyond the set-up (mm)",
            round(figures["displacement_median_mm"], 2),
        ),
        ("99 % of it (mm)", round(figures["displacement_99_mm"], 2)),
        ("growth of tissue, least", round(low, 2)),
        ("growth of tissue, most", round(high, 2)),
        ("folded voxels inside the body", figures["folded_voxels"]),
        ("share of the repeat CT's body that the planning CT shows", round(figures["overlap"], 3)),
        (
            "grid of the deformation, z y x (mm)",
            " × ".join(f"{s:.2f}" for s in figures["grid_spacing_zyx_mm"]),
        ),
    ]
    blocks: list[Text | TableBlock | Figure] = []
    if figures["folded_voxels"]:
        blocks.append(Text(text="The deformation folds: do not use it to add up dose.", kind="warning"))
    blocks.append(TableBlock(title="The deformation as a whole", columns=["what", "value"], rows=rows))
    caption = "Repeat CT, planning CT laid on it, and their difference before and after the deformation."
    blocks.append(Figure(caption=caption, png=_before_and_after(adaptation, planning, repeat)))
    return blocks


def _before_and_after(adaptation: Adaptation, planning: Volume, repeat: Volume) -> bytes:
    deformation = adaptation.registration.deformation
    grid = deformation.grid
    now = resample(repeat.to_canonical()[0], grid, fill=AIR_HU, antialias=True).array
    laid = deformation.warp(planning, grid, fill=AIR_HU).array
    rigid = deformation.without_displacement().warp(planning, grid, fill=AIR_HU).array
    panels = [panel for axis in (0, 1) for panel in _row(now, laid, rigid, axis=axis, grid=grid)]
    return draw_panels(panels, columns=4)


def _row(now: Array, laid: Array, rigid: Array, *, axis: int, grid: Grid) -> list[Panel]:
    spacing = [s for k, s in enumerate(grid.spacing_zyx_mm) if k != axis]

    def plane(array: Array) -> Array:
        cut: Array = np.take(array, array.shape[axis] // 2, axis=axis)
        return cut[::-1] if axis == 1 else cut

    shown = [
        ("repeat CT", now, None),
        ("planning CT, deformed", laid, None),
        ("difference, rigid only", now - rigid, DIFFERENCE_HU),
        ("difference, deformed", now - laid, DIFFERENCE_HU),
    ]
    size = (spacing[0], spacing[1])
    return [
        Panel(title=title, image=plane(image), outlines={}, spacing_yx=size)
        if window is None
        else Panel(title=title, image=plane(image), outlines={}, spacing_yx=size, window=window)
        for title, image, window in shown
    ]
