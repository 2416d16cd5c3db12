"""Images as the registration sees them: one grid, no couch, no bowel gas, soft tissue in fine steps."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from consilium.errors import DataError
from consilium.geometry.crop import Box
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray, Mask, Triple

AIR_HU = -1000.0
BODY_ABOVE_HU = -400.0
FINEST_MM = 3.0
MOST_VOXELS = 1_000_000
"""Of the registration's grid: it is made coarser until it has no more."""

MARGIN_MM = 12.0
OPENING_MM = 6.0
"""What is thinner, as a couch's shell, does not hang on the body."""

GAS_BELOW_HU = BODY_ABOVE_HU
"""What is inside the body and no tissue; not higher, or the skin's half-filled voxels would be gas."""

RIM_BELOW_HU = -150.0
LARGEST_POCKET_CM3 = 200.0
"""Air inside the body that is larger is lung."""

POCKET_RIM_MM = 3.0
FILL_RANGE_HU = (-20.0, 60.0)

CURVE_HU = (-1000.0, -200.0, 250.0, 1500.0)
CURVE = (-4.0, -2.0, 2.5, 4.6)
"""Grey values in steps of 100 HU of soft tissue; lung and bone in coarser steps."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image on the registration's grid.

    Args:
        grey: (Z, Y, X) float32, see `CURVE`; what is not body is air.
        body: (Z, Y, X): inside the patient.
        seen: (Z, Y, X): inside the image.
        gas: (Z, Y, X): pockets of gas that were filled with tissue.
        grid: Of all three.
    """

    grey: FloatArray
    body: Mask
    seen: Mask
    gas: Mask
    grid: Grid


def registration_grid(repeat: Volume) -> Grid:
    """The grid of the registration: the repeat CT's canonical axes around its body, 3 mm or coarser.

    Raises:
        DataError: The image shows no body.
    """
    canonical, _ = repeat.to_canonical()
    coarse = canonical.grid.resampled(_at_least(canonical.grid.spacing_zyx_mm, 2 * FINEST_MM))
    seen = resample(canonical, coarse, fill=AIR_HU, antialias=True)
    box = Box.around(find_body_mask(seen.array, coarse))
    if box is None:
        raise DataError(
            f"registration: the image must show a body (above {BODY_ABOVE_HU:g} HU); everything is air. "
            "Check its rescale slope and intercept."
        )
    z, y, x = (int(np.ceil(MARGIN_MM / s)) for s in coarse.spacing_zyx_mm)
    around = coarse.cropped(box.grown((z, y, x)).clipped(coarse.shape_zyx))
    spacing = _at_least(canonical.grid.spacing_zyx_mm, FINEST_MM)
    extent = np.asarray(around.shape_zyx) * around.spacing_zyx_mm
    step = FINEST_MM
    while np.prod(extent / spacing) > MOST_VOXELS:
        step *= 1.02
        spacing = _at_least(canonical.grid.spacing_zyx_mm, step)
    return around.resampled(spacing)


def prepare(volume: Volume, grid: Grid) -> PreparedImage:
    """An image in Hounsfield units on the registration's grid."""
    canonical, _ = volume.to_canonical()
    outside = float(np.iinfo(np.int16).min)
    hu = resample(canonical, grid, fill=outside, antialias=True).array
    seen = np.asarray(hu > outside + 1)
    hu = np.where(seen, hu, AIR_HU).astype(np.float32)
    body = find_body_mask(hu, grid)
    gas = find_gas_pockets(hu, body, grid)
    filled = fill_gas(hu, gas, grid)
    filled[~body] = AIR_HU
    return PreparedImage(grey=to_grey(filled), body=body, seen=seen, gas=gas, grid=grid)


def to_grey(hu: Array) -> FloatArray:
    """Hounsfield units along `CURVE`; what lies beyond its ends takes their value."""
    return np.interp(hu, CURVE_HU, CURVE).astype(np.float32)


def find_body_mask(hu: Array, grid: Grid) -> Mask:
    """The patient without couch and mask: (Z, Y, X); nothing where everything is air.

    Tissue is opened by `OPENING_MM`, its largest part kept, grown back, and filled slice by slice, so that
    lungs and gas are inside. Parts of a fifth of the largest stay too: two legs are a patient.
    """
    tissue = np.asarray(hu > BODY_ABOVE_HU)
    steps = _ball_steps(OPENING_MM / 2, grid.spacing_zyx_mm)
    cores = _box_filter(tissue, steps, keep_all=True)
    labels, count = ndimage.label(cores)
    if not count:
        cores, (labels, count) = tissue, ndimage.label(tissue)
    if not count:
        return np.zeros(hu.shape, dtype=np.bool_)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    kept = np.isin(labels, np.flatnonzero(sizes >= 0.2 * sizes.max()))
    grown = _box_filter(kept, steps, keep_all=False) & tissue
    return np.stack([ndimage.binary_fill_holes(plane) for plane in grown])


def find_gas_pockets(hu: Array, body: Mask, grid: Grid) -> Mask:
    """Pockets of gas in the bowel with the voxels of their rim: (Z, Y, X).

    Air inside the body that the image's border does not cut (windpipe, throat) and that is no lung.
    """
    air = np.asarray(body & (hu < GAS_BELOW_HU))
    labels, count = ndimage.label(air)
    if not count:
        return np.zeros(hu.shape, dtype=np.bool_)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1) * grid.voxel_volume_cm3
    cut = np.zeros(count + 1, dtype=np.bool_)
    for axis in range(3):
        for side in (0, -1):
            cut[np.unique(np.take(labels, side, axis=axis))] = True
    pocket = ~cut & (sizes <= LARGEST_POCKET_CM3)
    pocket[0] = False
    inside = pocket[labels]
    rim = _box_filter(inside, _ball_steps(POCKET_RIM_MM, grid.spacing_zyx_mm), keep_all=False)
    return np.asarray(inside | (rim & body & (hu < RIM_BELOW_HU)))


def fill_gas(hu: Array, gas: Mask, grid: Grid) -> FloatArray:
    """Gas replaced by the tissue around each pocket, so that a rectum with gas looks like a full one."""
    filled = np.array(hu, dtype=np.float32)
    labels, count = ndimage.label(gas)
    steps = _ball_steps(2 * POCKET_RIM_MM, grid.spacing_zyx_mm)
    for number, box in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        around = tuple(
            slice(max(0, part.start - step), part.stop + step) for part, step in zip(box, steps, strict=True)
        )
        pocket = labels[around] == number
        shell = _box_filter(pocket, steps, keep_all=False) & ~gas[around]
        values = hu[around][shell]
        level = float(np.median(values)) if values.size else FILL_RANGE_HU[1]
        filled[around][pocket] = np.clip(level, *FILL_RANGE_HU)
    return filled


def _at_least(spacing: Triple, step: float) -> Triple:
    z, y, x = (max(s, step) for s in spacing)
    return z, y, x


def _ball_steps(radius_mm: float, spacing_zyx_mm: Triple) -> tuple[int, int, int]:
    z, y, x = (max(1, round(radius_mm / s)) for s in spacing_zyx_mm)
    return z, y, x


def _box_filter(mask: Mask, steps: tuple[int, int, int], *, keep_all: bool) -> Mask:
    """Erosion (``keep_all``) or dilation by a box that reaches ``steps`` voxels to each side."""
    size = tuple(2 * s + 1 for s in steps)
    image = mask.view(np.uint8)
    if keep_all:
        return np.asarray(ndimage.minimum_filter(image, size=size, mode="nearest")).view(np.bool_)
    return np.asarray(ndimage.maximum_filter(image, size=size, mode="nearest")).view(np.bool_)
