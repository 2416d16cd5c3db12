"""The main path: two CT and the planning contours in; contours of the repeat CT and what changed out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from consilium.adaptation.propagate import StructureShape
from consilium.adaptation.refine import Refinement, refine
from consilium.adaptation.register import Registration, register
from consilium.adaptation.report import ChangeMeter, DayMasks, StructureChange, is_cut
from consilium.errors import DataError
from consilium.geometry.volume import Grid, Volume
from consilium.inference.model import Model
from consilium.types import Mask, Progress, no_progress


@dataclass(frozen=True, eq=False)
class Adaptation:
    """Everything before the contours are made, one by one.

    Args:
        registration: Between the two CT.
        shapes: Structure -> its shape on the planning day.
        planning_volumes_cm3: Structure -> volume on the planning day.
        cut: Structures that met the planning CT's edge.
        refinement: By the network; None without one.
        grid: The repeat CT's own.
    """

    registration: Registration
    shapes: Mapping[str, StructureShape]
    planning_volumes_cm3: Mapping[str, float]
    cut: frozenset[str]
    refinement: Refinement | None
    grid: Grid

    def contours(self, progress: Progress = no_progress) -> Iterator[tuple[DayMasks, StructureChange]]:
        """Structure by structure, its masks and what changed; never more than one structure in memory."""
        meter = ChangeMeter(self.registration, self.grid)
        deformation = self.registration.deformation
        rigid = deformation.without_displacement()
        for done, (name, shape) in enumerate(self.shapes.items(), start=1):
            propagated = shape.carried(deformation, self.grid)
            final, source = propagated, "propagated"
            if self.refinement is not None and name in self.refinement.probability:
                refined = self.refinement.mask(name, propagated, self.grid)
                if refined.any():
                    final, source = refined, self.refinement.source
            masks = DayMasks(
                structure=name,
                final=final,
                propagated=propagated,
                rigid=shape.carried(rigid, self.grid),
                planning_volume_cm3=self.planning_volumes_cm3[name],
                is_cut=name in self.cut,
                source=source,
            )
            yield masks, meter.measure(masks)
            progress("contours", done, len(self.shapes))


def adapt(
    planning: Volume,
    structures: Iterator[tuple[str, Mask]],
    repeat: Volume,
    model: Model | None = None,
    *,
    progress: Progress = no_progress,
) -> Adaptation:
    """Register, and let the network see the propagated structures.

    Args:
        planning: The planning CT in Hounsfield units.
        structures: Name and mask (Z, Y, X) on its grid, one at a time.
        repeat: The repeat CT in Hounsfield units; any grid, orientation and frame of reference.
        model: Refines what it knows; None: everything is propagated only.
        progress: Told throughout.

    Raises:
        DataError: No structure with a voxel, or images that cannot be registered.
    """
    shapes: dict[str, StructureShape] = {}
    volumes: dict[str, float] = {}
    cut = set()
    for name, mask in structures:
        shape = StructureShape.of(mask, planning.grid)
        if shape is not None:
            shapes[name] = shape
            volumes[name] = int(np.count_nonzero(mask)) * planning.grid.voxel_volume_cm3
            if is_cut(mask):
                cut.add(name)
    if not shapes:
        raise DataError("adaptation: the planning contours must enclose at least one voxel; none does.")
    registration = register(planning, repeat, progress=progress)
    refinement = None
    if model is not None:
        refinement = refine(model, repeat, planning, registration.deformation, shapes, progress=progress)
    return Adaptation(
        registration=registration,
        shapes=shapes,
        planning_volumes_cm3=volumes,
        cut=frozenset(cut),
        refinement=refinement,
        grid=repeat.grid,
    )
