"""IBSI family HCUG: size and shape of the contour, and how intensities lie within it."""

import math

import numpy as np
from scipy import fft
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from consilium.geometry.marching_cubes import compute_block_areas, compute_block_volumes, neighbour_codes
from consilium.radiomics.region import Region
from consilium.types import Array, FloatArray, Mask, Triple

MAX_CORRELATED_VOXELS = 100_000_000
"""Padded voxels beyond which Moran's I and Geary's C are left out: their transform would need over 3 GB."""


def compute_morphology(region: Region) -> dict[str, float]:
    """Shape features of the contour, and how intensities lie within it.

    Returns:
        Tag → value. Ratios are NaN where their denominator is 0 (one voxel has no second axis); Moran's I and
        Geary's C are NaN for a flat region and for one of more than `MAX_CORRELATED_VOXELS`.

    Source:
        IBSI reference manual, "Morphological features" (HCUG). The surface is that of marching cubes.
    """
    core = region.core
    spacing = core.spacing_zyx_mm
    codes = neighbour_codes(np.pad(core.mask, 1))
    voxel_mm3 = float(np.prod(spacing))
    volume = float(compute_block_volumes()[codes].sum()) * voxel_mm3
    area = float(compute_block_areas(spacing)[codes].sum())
    values = {"morph_volume": volume, "morph_vol_approx": int(core.mask.sum()) * voxel_mm3}
    values |= _compactness(volume, area)
    values |= _hull(surface_points(core.mask, spacing), volume, area)
    values |= _axes(_centres(core.mask, spacing), volume, area)
    values["morph_com"] = _centre_of_mass_shift(core)
    values["morph_integ_int"] = float(core.intensities.mean()) * volume
    values["morph_moran_i"], values["morph_geary_c"] = spatial_autocorrelation(
        core.image, core.intensity_mask, spacing
    )
    return values


def surface_points(mask: Mask, spacing_zyx_mm: Triple) -> FloatArray:
    """(N, 3) corners of the marching-cubes surface in mm: midpoints between inside and outside voxels."""
    padded = np.pad(mask, 1)
    points = []
    for axis in range(3):
        between = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64)
        between[:, axis] += 0.5
        points.append(between)
    scaled: FloatArray = np.concatenate(points) * np.asarray(spacing_zyx_mm)
    return scaled


def ibsi_ellipsoid_area(a: float, b: float, c: float) -> float:
    """IBSI's series for the surface area of an ellipsoid of semi-axes a ≥ b ≥ c, to its 20th term.

    It is the standard's definition (RDD2), though smaller than the true area unless the axes are equal.
    """
    if a <= 0:
        return 0.0
    alpha2, beta2 = 1 - (b / a) ** 2, 1 - (c / a) ** 2
    # (αβ)^v P_v((α² + β²) / 2αβ) by the recurrence of Legendre polynomials, which stays finite for αβ = 0.
    half, square = (alpha2 + beta2) / 2, alpha2 * beta2
    term, before = 1.0, 0.0
    total = 0.0
    for v in range(21):
        total += term / (1 - 4 * v * v)
        term, before = ((2 * v + 1) * half * term - v * square * before) / (v + 1), term
    return 4 * math.pi * a * b * total


def spatial_autocorrelation(image: FloatArray, mask: Mask, spacing_zyx_mm: Triple) -> tuple[float, float]:
    """Moran's I and Geary's C with weights 1 / distance between every pair of voxels.

    All pairs are summed exactly, in the Fourier domain.

    Args:
        image: (Z, Y, X) intensities.
        mask: Which voxels take part.
        spacing_zyx_mm: Voxel spacing.

    Returns:
        I and C; NaN for fewer than two voxels, equal intensities or too large a region.
    """
    count = int(mask.sum())
    shape = [fft.next_fast_len(2 * n - 1, real=True) for n in mask.shape]
    values = image[mask]
    spread = float(((values - values.mean()) ** 2).sum()) if count else 0.0
    if count < 2 or spread == 0 or math.prod(shape) > MAX_CORRELATED_VOXELS:
        return math.nan, math.nan
    weights = fft.rfftn(_inverse_distances(shape, spacing_zyx_mm)).real.copy()
    weights *= _shares(weights.shape[-1], even=shape[-1] % 2 == 0) / math.prod(shape)
    deviation = np.where(mask, image - values.mean(), 0.0)
    inside = fft.rfftn(mask.astype(np.float64), shape)
    total = _weighted_sum(weights, inside, inside)
    signal = fft.rfftn(deviation, shape)
    product = _weighted_sum(weights, signal, signal)
    del signal
    squares = _weighted_sum(weights, fft.rfftn(deviation**2, shape), inside)
    moran = count / total * product / spread
    geary = (count - 1) / (2 * total) * (2 * squares - 2 * product) / spread
    return moran, geary


def _shares(length: int, *, even: bool) -> FloatArray:
    """How many columns of the whole spectrum each column of the stored half of the last axis stands for."""
    share = np.full(length, 2.0)
    share[0] = 1.0
    if even:
        share[-1] = 1.0
    return share


def _weighted_sum(weights: FloatArray, first: Array, second: Array) -> float:
    """Sum over all pairs of voxels of weight times value of the one times value of the other (Parseval)."""
    real = np.einsum("zyx,zyx,zyx->", weights, first.real, second.real)
    return float(real + np.einsum("zyx,zyx,zyx->", weights, first.imag, second.imag))


def _inverse_distances(shape: list[int], spacing_zyx_mm: Triple) -> FloatArray:
    squares = [
        (np.minimum(np.arange(n), n - np.arange(n)) * s) ** 2.0
        for n, s in zip(shape, spacing_zyx_mm, strict=True)
    ]
    squared = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
    squared[0, 0, 0] = np.inf
    return np.asarray(squared**-0.5)


def _compactness(volume: float, area: float) -> dict[str, float]:
    sphere = (36 * math.pi * volume**2) ** (1 / 3)
    return {
        "morph_area_mesh": area,
        "morph_av": area / volume,
        "morph_comp_1": volume / (math.sqrt(math.pi) * area**1.5),
        "morph_comp_2": 36 * math.pi * volume**2 / area**3,
        "morph_sph_dispr": area / sphere,
        "morph_sphericity": sphere / area,
        "morph_asphericity": (area**3 / (36 * math.pi * volume**2)) ** (1 / 3) - 1,
    }


def _hull(points: FloatArray, volume: float, area: float) -> dict[str, float]:
    edges = np.ptp(points, axis=0)
    box_area = 2 * (edges[0] * edges[1] + edges[1] * edges[2] + edges[0] * edges[2])
    values = {
        "morph_vol_dens_aabb": volume / float(np.prod(edges)),
        "morph_area_dens_aabb": area / float(box_area),
    }
    try:
        hull = ConvexHull(_outermost(points))
    except QhullError:
        missing = ("morph_diam", "morph_vol_dens_conv_hull", "morph_area_dens_conv_hull")
        return values | dict.fromkeys(missing, math.nan)
    corners = hull.points[hull.vertices]
    return values | {
        "morph_diam": float(pdist(corners).max()),
        "morph_vol_dens_conv_hull": volume / float(hull.volume),
        "morph_area_dens_conv_hull": area / float(hull.area),
    }


def _outermost(points: FloatArray) -> FloatArray:
    """The first and last point along X of each row; no other can be a corner of the hull."""
    order = np.lexsort((points[:, 2], points[:, 1], points[:, 0]))
    points = points[order]
    new_row = np.any(np.diff(points[:, :2], axis=0) != 0, axis=1)
    first, last = np.concatenate([[True], new_row]), np.concatenate([new_row, [True]])
    outer: FloatArray = points[first | last]
    return outer


def _centres(mask: Mask, spacing_zyx_mm: Triple) -> FloatArray:
    centres: FloatArray = np.argwhere(mask) * np.asarray(spacing_zyx_mm)
    return centres


def _axes(centres: FloatArray, volume: float, area: float) -> dict[str, float]:
    """Lengths 4·√λ of the principal axes of the voxel centres, and the ellipsoid that they span."""
    moments = np.cov(centres, rowvar=False, bias=False) if len(centres) > 1 else np.zeros((3, 3))
    least, minor, major = 4 * np.sqrt(np.maximum(np.linalg.eigvalsh(moments), 0)).astype(float)
    ellipsoid = 4 / 3 * math.pi * major * minor * least / 8
    surface = ibsi_ellipsoid_area(major / 2, minor / 2, least / 2)
    return {
        "morph_pca_maj_axis": float(major),
        "morph_pca_min_axis": float(minor),
        "morph_pca_least_axis": float(least),
        "morph_pca_elongation": _quotient(minor, major),
        "morph_pca_flatness": _quotient(least, major),
        "morph_vol_dens_aee": _quotient(volume, ellipsoid),
        "morph_area_dens_aee": _quotient(area, surface),
    }


def _quotient(above: float, below: float) -> float:
    return float(above / below) if below > 0 else math.nan


def _centre_of_mass_shift(region: Region) -> float:
    """Distance between the contour's centre and its centre weighted by intensity."""
    values = region.intensities
    if values.sum() == 0:
        return math.nan
    weighted = np.average(_centres(region.intensity_mask, region.spacing_zyx_mm), axis=0, weights=values)
    return float(np.linalg.norm(_centres(region.mask, region.spacing_zyx_mm).mean(axis=0) - weighted))
