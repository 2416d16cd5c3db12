"""IBSI family 9ST6: mean intensity within 1 cm³ around the brightest voxels."""

import numpy as np

from consilium.geometry.compiled import compiled
from consilium.radiomics.region import PEAK_RADIUS_MM, Region
from consilium.types import Array, FloatArray


def compute_local_intensity(region: Region) -> dict[str, float]:
    """Local peak (mean around the brightest voxel, the highest if several) and global peak (highest mean).

    The sphere of 1 cm³ may reach outside the contour, and counts the voxels whose centres it holds; what lies
    beyond the image is left out.

    Source:
        IBSI reference manual, "Local intensity features" (9ST6).
    """
    spacing = region.spacing_zyx_mm
    reach = [int(PEAK_RADIUS_MM / s) for s in spacing]
    z, y = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    left = PEAK_RADIUS_MM**2 - (z * spacing[0]) ** 2 - (y * spacing[1]) ** 2
    rows = np.stack([z[left >= 0], y[left >= 0], np.sqrt(left[left >= 0]) / spacing[2]], axis=1)
    rows = np.floor(rows + 1e-9).astype(np.int64)
    sums = np.cumsum(np.pad(region.image, ((0, 0), (0, 0), (1, 0))), axis=2)
    points = np.argwhere(region.intensity_mask)
    means = _sphere_means(sums, points, rows)
    brightest = region.intensities == region.intensities.max()
    return {"loc_peak_loc": float(means[brightest].max()), "loc_peak_glob": float(means.max())}


@compiled
def _sphere_means(sums: FloatArray, points: Array, rows: Array) -> FloatArray:
    """Means over spheres given as rows (dz, dy, half length) by running sums along X."""
    nz, ny, nx = sums.shape[0], sums.shape[1], sums.shape[2] - 1
    out = np.empty(len(points))
    for i in range(len(points)):
        total = 0.0
        count = 0
        for k in range(len(rows)):
            z, y = points[i, 0] + rows[k, 0], points[i, 1] + rows[k, 1]
            if z < 0 or z >= nz or y < 0 or y >= ny:
                continue
            low = max(points[i, 2] - rows[k, 2], 0)
            high = min(points[i, 2] + rows[k, 2] + 1, nx)
            total += sums[z, y, high] - sums[z, y, low]
            count += high - low
        out[i] = total / count
    return out
