"""The whole registration: from two CT to the deformation between them."""

from dataclasses import dataclass

from consilium.adaptation.deformable import register_deformable
from consilium.adaptation.deformation import Deformation
from consilium.adaptation.images import PreparedImage, prepare, registration_grid
from consilium.adaptation.rigid import carried_back, register_rigid
from consilium.geometry.volume import Volume
from consilium.types import Progress, no_progress


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found, and the images that it saw.

    Args:
        deformation: From the repeat CT to the planning CT.
        planning: After the rigid movement, on the registration's grid.
        repeat: On the same grid.
    """

    deformation: Deformation
    planning: PreparedImage
    repeat: PreparedImage


def register(planning: Volume, repeat: Volume, *, progress: Progress = no_progress) -> Registration:
    """Find where each point of the repeat CT lay in the planning CT.

    Both may have grids, orientations and frames of reference of their own.

    Args:
        planning: In Hounsfield units.
        repeat: In Hounsfield units.
        progress: Told after each step.

    Raises:
        DataError: No body in an image, or no position in which the two overlap.
    """
    grid = registration_grid(repeat)
    fixed = prepare(repeat, grid)
    own = registration_grid(planning)
    rigid = register_rigid(prepare(planning, own), fixed, progress=progress)
    moving = prepare(Volume(planning.array, carried_back(planning.grid, rigid)), grid)
    displacement = register_deformable(moving, fixed, progress=progress)
    return Registration(deformation=Deformation(displacement, grid, rigid), planning=moving, repeat=fixed)
