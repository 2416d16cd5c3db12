"""Distances between two surfaces and what is computed from them: HD95, mean distance, surface Dice."""

from dataclasses import dataclass

import numpy as np

from consilium.errors import ConfigurationError, GeometryError
from consilium.geometry.marching_cubes import FULL, compute_block_areas, neighbour_codes
from consilium.metrics.distance import distances_to_nearest
from consilium.types import Array, FloatArray, Mask, Triple

SURFACE_DEFINITION = "marching-cubes surface elements weighted by area (Nikolov et al. 2021)"
"""What every surface figure of this package is measured on; state it wherever a figure is shown."""


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Every element of both surfaces with its area and its distance to the other surface.

    Attributes:
        reference_mm: (N,) distance from each element of the reference's surface to the prediction's, sorted;
            inf if the prediction is empty.
        reference_mm2: (N,) area of those elements.
        prediction_mm: (M,) distance from each element of the prediction's surface to the reference's, sorted.
        prediction_mm2: (M,) area of those elements.
    """

    reference_mm: FloatArray
    reference_mm2: FloatArray
    prediction_mm: FloatArray
    prediction_mm2: FloatArray

    def hausdorff_mm(self, percentile: float = 100.0) -> float:
        """Larger of the two directed distances that ``percentile`` % of a surface's area stays within.

        Returns:
            ≥ 0 in mm; inf if exactly one mask is empty, NaN if both are.
        """
        if not 0 < percentile <= 100:
            raise ConfigurationError(f"hausdorff_mm: percentile must be in (0, 100]; found {percentile}.")
        if self._empty is not None:
            return self._empty
        return max(
            _weighted_percentile(self.reference_mm, self.reference_mm2, percentile),
            _weighted_percentile(self.prediction_mm, self.prediction_mm2, percentile),
        )

    def directed_means_mm(self) -> tuple[float, float]:
        """Area-weighted mean distance reference → prediction and prediction → reference.

        Returns:
            Two values ≥ 0 in mm; both inf if exactly one mask is empty, both NaN if both are.
        """
        if self._empty is not None:
            return self._empty, self._empty
        return (
            float(np.sum(self.reference_mm * self.reference_mm2) / np.sum(self.reference_mm2)),
            float(np.sum(self.prediction_mm * self.prediction_mm2) / np.sum(self.prediction_mm2)),
        )

    def mean_mm(self) -> float:
        """Mean distance over the area of both surfaces together (average symmetric surface distance).

        Returns:
            ≥ 0 in mm; inf if exactly one mask is empty, NaN if both are.
        """
        if self._empty is not None:
            return self._empty
        weighted = np.sum(self.reference_mm * self.reference_mm2)
        weighted += np.sum(self.prediction_mm * self.prediction_mm2)
        return float(weighted / self._total_mm2)

    def surface_dice(self, tolerance_mm: float) -> float:
        """Part of both surfaces' area that lies within ``tolerance_mm`` of the other surface.

        Returns:
            In [0, 1]; 0 if exactly one mask is empty, NaN if both are.
        """
        if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
            raise ConfigurationError(f"surface_dice: tolerance_mm must be ≥ 0; found {tolerance_mm}.")
        if not self._total_mm2:
            return float("nan")
        near = np.sum(self.reference_mm2[self.reference_mm <= tolerance_mm])
        near += np.sum(self.prediction_mm2[self.prediction_mm <= tolerance_mm])
        return float(near / self._total_mm2)

    @property
    def _total_mm2(self) -> float:
        return float(np.sum(self.reference_mm2) + np.sum(self.prediction_mm2))

    @property
    def _empty(self) -> float | None:
        """What a distance is when a mask is empty; None when neither is."""
        if len(self.reference_mm) and len(self.prediction_mm):
            return None
        return float("inf") if len(self.reference_mm) or len(self.prediction_mm) else float("nan")


def compute_surface_distances(reference: Mask, prediction: Mask, spacing_zyx_mm: Triple) -> SurfaceDistances:
    """Distances between the surfaces of two masks of the same grid.

    A surface element sits at the corner shared by eight voxels, of which some are inside; its area is that
    of the marching-cubes surface there. Beyond the grid's edge everything counts as outside, so a structure
    cut by the edge has a surface there.

    Args:
        reference: (Z, Y, X) bool.
        prediction: (Z, Y, X) bool, same shape.
        spacing_zyx_mm: Voxel spacing in mm **in array order**, positive.

    Returns:
        The distances; empty arrays for an empty mask, and inf towards it.

    Raises:
        GeometryError: Masks not boolean, not 3D or not of one shape; a spacing that is not positive.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23(7):e26151, "Surface Dice".
    """
    check_masks(reference, prediction, spacing_zyx_mm)
    box = bounding_box(reference, prediction)
    areas = compute_block_areas(spacing_zyx_mm)
    codes = [neighbour_codes(_padded(mask[box])) for mask in (reference, prediction)]
    borders = [(code != 0) & (code != FULL) for code in codes]
    points = [np.argwhere(border) for border in borders]
    surfel_mm2 = [areas[code[border]] for code, border in zip(codes, borders, strict=True)]
    to_prediction = distances_to_nearest(borders[1], points[0], spacing_zyx_mm)
    to_reference = distances_to_nearest(borders[0], points[1], spacing_zyx_mm)
    reference_order = np.lexsort((surfel_mm2[0], to_prediction))
    prediction_order = np.lexsort((surfel_mm2[1], to_reference))
    return SurfaceDistances(
        reference_mm=to_prediction[reference_order],
        reference_mm2=surfel_mm2[0][reference_order],
        prediction_mm=to_reference[prediction_order],
        prediction_mm2=surfel_mm2[1][prediction_order],
    )


def check_masks(reference: Mask, prediction: Mask, spacing_zyx_mm: Triple) -> None:
    """Refuse masks that cannot be compared.

    Raises:
        GeometryError: Not boolean, not 3D, of different shapes, or a spacing that is not positive.
    """
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise GeometryError(
                f"{name}: must be a boolean (Z, Y, X) array; found {mask.dtype} with {mask.ndim} axes. "
                "Compare one structure's mask at a time."
            )
    if reference.shape != prediction.shape:
        raise GeometryError(
            f"reference and prediction: must lie on one grid; found shapes {reference.shape} and "
            f"{prediction.shape}. Resample the prediction to the reference's grid first."
        )
    if len(spacing_zyx_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_zyx_mm):
        raise GeometryError(f"spacing_zyx_mm: must be three positive lengths in mm; found {spacing_zyx_mm}.")


def bounding_box(*masks: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds every True voxel of all masks; empty slices if there is none."""
    boxes = [_box(mask) for mask in masks]
    found = [box for box in boxes if box is not None]
    if not found:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    z, y, x = (
        slice(min(box[axis][0] for box in found), max(box[axis][1] for box in found)) for axis in range(3)
    )
    return z, y, x


def _box(mask: Mask) -> list[tuple[int, int]] | None:
    z = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(z):
        return None
    ends = [(int(z[0]), int(z[-1]) + 1)]
    flat: Array = np.any(mask[z[0] : z[-1] + 1], axis=0)
    for axis in (1, 0):
        found = np.flatnonzero(flat.any(axis=axis))
        ends.append((int(found[0]), int(found[-1]) + 1))
    return ends


def _padded(mask: Mask) -> Array:
    return np.pad(mask, 1)


def _weighted_percentile(sorted_mm: FloatArray, mm2: FloatArray, percentile: float) -> float:
    share = np.cumsum(mm2) / np.sum(mm2)
    index = int(np.searchsorted(share, percentile / 100))
    return float(sorted_mm[min(index, len(sorted_mm) - 1)])
