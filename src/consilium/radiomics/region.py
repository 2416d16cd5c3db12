"""The region that features are computed on: image and contour resampled, cut out and discretised."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.affine import Affine
from consilium.geometry.crop import Box
from consilium.geometry.resample import resample, resample_probability
from consilium.geometry.volume import Grid, Volume
from consilium.radiomics.settings import (
    MAX_LEVELS,
    Discretisation,
    FixedBinNumber,
    IntegerLevels,
    RadiomicsSettings,
)
from consilium.types import Array, FloatArray, Mask, Shape, Triple

PEAK_RADIUS_MM = (3 / (4 * np.pi)) ** (1 / 3) * 10
"""Radius of the sphere of 1 cm³ around which local intensity is averaged; the image reaches so far beyond."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """One contour's neighbourhood, prepared.

    Attributes:
        image: (Z, Y, X) float64 intensities, a margin around the contour included.
        mask: The contour (IBSI's morphological mask).
        intensity_mask: The contour without the voxels left out by intensity.
        levels: (Z, Y, X) int32: grey levels ≥ 1 inside the intensity mask, 0 elsewhere.
        level_count: Number of grey levels, the highest possible one.
        spacing_zyx_mm: Voxel spacing.
    """

    image: FloatArray
    mask: Mask
    intensity_mask: Mask
    levels: Array
    level_count: int
    spacing_zyx_mm: Triple

    @property
    def intensities(self) -> FloatArray:
        """(N,) intensities inside the intensity mask."""
        inside: FloatArray = self.image[self.intensity_mask]
        return inside

    @property
    def core(self) -> "Region":
        """The same region without the margin around the contour."""
        box = Box.around(self.mask)
        if box is None:
            return self
        cut = box.slices()
        return Region(
            image=self.image[cut],
            mask=self.mask[cut],
            intensity_mask=self.intensity_mask[cut],
            levels=np.ascontiguousarray(self.levels[cut]),
            level_count=self.level_count,
            spacing_zyx_mm=self.spacing_zyx_mm,
        )


def prepare_region(image: Array, mask: Mask, spacing_zyx_mm: Triple, settings: RadiomicsSettings) -> Region:
    """Resample, cut out, re-segment and discretise, in IBSI's order.

    Args:
        image: (Z, Y, X) intensities, finite inside the contour.
        mask: (Z, Y, X) bool, same shape.
        spacing_zyx_mm: Voxel spacing in array order.
        settings: What to do.

    Raises:
        GeometryError: Shapes differ, the mask is empty (before or after the intensity range), or intensities
            inside it are not finite or not integers where levels are to be taken as they are.

    Source:
        IBSI reference manual, chapter 2, "Image processing".
    """
    _check(image, mask, spacing_zyx_mm)
    intensities, contour, spacing = _cut_out(image, mask, spacing_zyx_mm, settings.resampled_spacing_zyx_mm)
    if not np.isfinite(intensities[contour]).all():
        raise GeometryError("image: intensities inside the contour must be finite; found NaN or infinity.")
    if settings.rounded:
        intensities = np.rint(intensities)
    inside = _resegment(intensities, contour, settings)
    levels, count = discretise(intensities[inside], settings.discretisation, settings.intensity_range)
    level_image = np.zeros(contour.shape, np.int32)
    level_image[inside] = levels
    return Region(
        image=intensities,
        mask=contour,
        intensity_mask=inside,
        levels=level_image,
        level_count=count,
        spacing_zyx_mm=spacing,
    )


def discretise(
    intensities: FloatArray, how: Discretisation, intensity_range: tuple[float, float] | None
) -> tuple[Array, int]:
    """Grey levels 1 … n of intensities.

    Args:
        intensities: (N,), N ≥ 1.
        how: Fixed bin number, fixed bin width or integers as they are.
        intensity_range: Its lower end is the origin of fixed bin widths that name none.

    Returns:
        (N,) int32 levels and the number of levels: the bins, or the highest level there is.

    Raises:
        GeometryError: Integers were announced and are not, or lie below 1; or more than `MAX_LEVELS` levels.

    Source:
        IBSI reference manual, "Intensity discretisation".
    """
    low, high = float(intensities.min()), float(intensities.max())
    if isinstance(how, IntegerLevels):
        levels = np.rint(intensities)
        if (levels != intensities).any() or low < 1:
            raise GeometryError(
                f"image: levels taken as they are must be integers from 1; found {low:g} to {high:g}. "
                "Choose a fixed bin number or width."
            )
        count = int(high)
    elif isinstance(how, FixedBinNumber):
        count = how.bins
        share = (intensities - low) / (high - low) if high > low else np.zeros(len(intensities))
        levels = np.minimum(np.floor(count * share) + 1, count)
    else:
        start = how.starts_at(intensity_range)
        origin = low if start is None else start
        levels = np.maximum(np.floor((intensities - origin) / how.width) + 1, 1)
        count = int(levels.max())
    if count > MAX_LEVELS:
        raise GeometryError(
            f"image: must have at most {MAX_LEVELS} grey levels; found {count}. Use wider bins."
        )
    return levels.astype(np.int32), count


def _check(image: Array, mask: Mask, spacing_zyx_mm: Triple) -> None:
    if image.ndim != 3 or image.shape != mask.shape or mask.dtype != np.bool_:
        raise GeometryError(
            f"image and contour: must be (Z, Y, X) on one grid, the contour boolean; found {image.shape} and "
            f"{mask.shape} of {mask.dtype}. Resample the contour to the image's grid."
        )
    if not all(np.isfinite(s) and s > 0 for s in spacing_zyx_mm):
        raise GeometryError(f"spacing_zyx_mm: must be positive lengths in mm; found {spacing_zyx_mm}.")
    if not mask.any():
        raise GeometryError("contour: must hold at least one voxel; found an empty one. Leave it out.")


def _cut_out(
    image: Array, mask: Mask, spacing_zyx_mm: Triple, to_zyx_mm: Triple | None
) -> tuple[FloatArray, Mask, Triple]:
    """Image and contour on the wanted grid, with `PEAK_RADIUS_MM` of the image around the contour."""
    z, y, x = image.shape
    grid = Grid((z, y, x), Affine.from_spacing(spacing_zyx_mm))
    target = grid if to_zyx_mm is None else _aligned_by_centre(grid, to_zyx_mm)
    spacing = target.spacing_zyx_mm
    near = _grown(Box.around(mask), PEAK_RADIUS_MM + 2 * max(spacing), grid.spacing_zyx_mm, grid.shape_zyx)
    if to_zyx_mm is None:
        intensities, contour = image[near.slices()].astype(np.float64), mask[near.slices()]
    else:
        source = grid.cropped(near)
        corners = np.array(list(product(*zip(near.start_zyx, near.stop_zyx, strict=True)))) - 0.5
        index = target.affine.to_indices(grid.affine.to_points(corners))
        low, high = np.floor(index.min(axis=0)).astype(int), np.ceil(index.max(axis=0)).astype(int) + 1
        part = target.cropped(Box(_shape(low), _shape(high)).clipped(target.shape_zyx))
        inside = Volume(mask[near.slices()].astype(np.float32), source)
        contour = resample_probability(inside, part)
        intensities = resample(Volume(image[near.slices()].astype(np.float64), source), part).array
    box = Box.around(contour)
    if box is None:
        raise GeometryError(
            "contour: must hold a voxel after resampling; found none. Use a finer resampled spacing."
        )
    cut = _grown(box, PEAK_RADIUS_MM, spacing, contour.shape).slices()
    return np.ascontiguousarray(intensities[cut]), np.ascontiguousarray(contour[cut]), spacing


def _grown(box: Box | None, margin_mm: float, spacing_zyx_mm: Triple, shape_zyx: Shape) -> Box:
    assert box is not None
    z, y, x = (int(np.ceil(margin_mm / s)) for s in spacing_zyx_mm)
    return box.grown((z, y, x)).clipped(shape_zyx)


def _shape(values: Array) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _aligned_by_centre(grid: Grid, to_zyx_mm: Triple) -> Grid:
    """IBSI's interpolation grid: as many voxels as cover the image, with the same centre (UMPJ, 3WE3)."""
    step = np.asarray(to_zyx_mm) / np.asarray(grid.spacing_zyx_mm)
    shape = np.ceil(np.asarray(grid.shape_zyx) / step - 1e-6).astype(int)
    start = (np.asarray(grid.shape_zyx) - 1) / 2 - step * (shape - 1) / 2
    z, y, x = (int(n) for n in np.maximum(shape, 1))
    return Grid((z, y, x), grid.affine.shifted(start).scaled(step))


def _resegment(intensities: FloatArray, contour: Mask, settings: RadiomicsSettings) -> Mask:
    inside = contour.copy()
    if settings.intensity_range is not None:
        low, high = settings.intensity_range
        inside &= (intensities >= low) & (intensities <= high)
    if settings.outlier_sigma is not None and inside.any():
        values = intensities[contour]
        distance = np.abs(intensities - values.mean())
        inside &= distance <= settings.outlier_sigma * values.std()
    if not inside.any():
        raise GeometryError(
            f"contour: must hold a voxel within the intensity range {settings.intensity_range}; found none. "
            "Widen the range, or leave this contour out."
        )
    return inside
