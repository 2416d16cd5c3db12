"""The one entry to compare a predicted contour with a reference: every figure of one pair in one pass."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from consilium.metrics.overlap import added_path_length_mm, dice_from_counts
from consilium.metrics.surface import (
    bounding_box,
    check_masks,
    compute_surface_distances,
)
from consilium.types import Mask, Triple

Empty = Literal["neither", "reference", "prediction", "both"]


@dataclass(frozen=True, kw_only=True)
class MaskComparison:
    """All figures of one reference and one prediction.

    Empty cases, counted apart by whoever averages (`empty` says which):

    ==========================  ==========  ===========  ===============  ===================
    empty                       Dice        distances    surface Dice     added path length
    ==========================  ==========  ===========  ===============  ===================
    both                        NaN         NaN          NaN              0
    reference                   0           inf          0                0
    prediction                  0           inf          0                whole contour
    ==========================  ==========  ===========  ===============  ===================

    Attributes:
        empty: Which of the two masks is empty.
        reference_voxels: Voxels of the reference.
        prediction_voxels: Voxels of the prediction.
        overlap_voxels: Voxels of both.
        reference_volume_cm3: Voxels times voxel volume.
        prediction_volume_cm3: The same for the prediction.
        dice: In [0, 1].
        surface_dice: In [0, 1] at ``tolerance_mm``.
        tolerance_mm: Tolerance of the surface Dice.
        hd95_mm: Larger of the two directed 95th percentiles, area-weighted.
        hausdorff_mm: Largest distance of all.
        mean_surface_distance_mm: Over the area of both surfaces together.
        reference_to_prediction_mm: Directed mean.
        prediction_to_reference_mm: Directed mean.
        added_path_length_mm: Contour to be drawn anew, per slice (Vaassen et al. 2020).
    """

    empty: Empty
    reference_voxels: int
    prediction_voxels: int
    overlap_voxels: int
    reference_volume_cm3: float
    prediction_volume_cm3: float
    dice: float
    surface_dice: float
    tolerance_mm: float
    hd95_mm: float
    hausdorff_mm: float
    mean_surface_distance_mm: float
    reference_to_prediction_mm: float
    prediction_to_reference_mm: float
    added_path_length_mm: float

    def as_dict(self) -> dict[str, float | int | str]:
        """The fields by name, as for a table's row."""
        return asdict(self)


def compare_masks(
    reference: Mask, prediction: Mask, spacing_zyx_mm: Triple, *, tolerance_mm: float = 2.0
) -> MaskComparison:
    """Compare two masks of one grid.

    Args:
        reference: (Z, Y, X) bool: the contour compared with.
        prediction: bool, same shape: the model's contour.
        spacing_zyx_mm: Voxel spacing in mm **in array order (Z, Y, X)**; a swapped order gives wrong
            distances that look plausible.
        tolerance_mm: Distance within which a surface counts as agreeing.

    Returns:
        Every figure; the empty cases are in `MaskComparison`'s table. Surfaces are those of
        `consilium.metrics.surface.SURFACE_DEFINITION`.

    Raises:
        GeometryError: The masks are not boolean 3D arrays of one shape, or the spacing is not positive.
        ConfigurationError: The tolerance is negative or not finite.

    Example:
        >>> import numpy as np
        >>> reference = np.zeros((4, 8, 8), bool)
        >>> reference[1:3, 2:6, 2:6] = True
        >>> figures = compare_masks(reference, reference, (3.0, 1.0, 1.0))
        >>> figures.dice, figures.surface_dice, figures.hd95_mm
        (1.0, 1.0, 0.0)
    """
    check_masks(reference, prediction, spacing_zyx_mm)
    box = bounding_box(reference, prediction)
    reference, prediction = reference[box], prediction[box]
    distances = compute_surface_distances(reference, prediction, spacing_zyx_mm)
    to_prediction, to_reference = distances.directed_means_mm()
    reference_voxels = int(np.count_nonzero(reference))
    prediction_voxels = int(np.count_nonzero(prediction))
    overlap_voxels = int(np.count_nonzero(reference & prediction))
    voxel_cm3 = float(np.prod(spacing_zyx_mm)) / 1000
    return MaskComparison(
        empty=_empty(reference_voxels, prediction_voxels),
        reference_voxels=reference_voxels,
        prediction_voxels=prediction_voxels,
        overlap_voxels=overlap_voxels,
        reference_volume_cm3=reference_voxels * voxel_cm3,
        prediction_volume_cm3=prediction_voxels * voxel_cm3,
        dice=dice_from_counts(reference_voxels, prediction_voxels, overlap_voxels),
        surface_dice=distances.surface_dice(tolerance_mm),
        tolerance_mm=float(tolerance_mm),
        hd95_mm=distances.hausdorff_mm(95),
        hausdorff_mm=distances.hausdorff_mm(),
        mean_surface_distance_mm=distances.mean_mm(),
        reference_to_prediction_mm=to_prediction,
        prediction_to_reference_mm=to_reference,
        added_path_length_mm=added_path_length_mm(reference, prediction, spacing_zyx_mm),
    )


def _empty(reference_voxels: int, prediction_voxels: int) -> Empty:
    if reference_voxels and prediction_voxels:
        return "neither"
    if reference_voxels or prediction_voxels:
        return "prediction" if reference_voxels else "reference"
    return "both"
