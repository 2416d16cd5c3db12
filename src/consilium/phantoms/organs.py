"""Organs in closed form: every cross-section is a wavy ellipse whose area is known on paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.volume import Grid
from consilium.types import Array, FloatArray, Triple

POINTS_PER_POLYGON = 120
Wave = tuple[int, float, float]
"""Order, amplitude (a fraction of the radius) and phase in radians of one ripple of an outline."""


@dataclass(frozen=True, kw_only=True)
class Organ:
    """An ellipsoid, or a tube along z, whose outline in each axial plane is rippled.

    At angle t the outline lies at ``1 + sum(a cos(k t + p))`` times the ellipse. In an ellipsoid the ellipse
    shrinks with ``(1 - ((z - z0) / rz)²)^½``; in a tube it keeps its size from ``z0 - rz`` to ``z0 + rz`` and
    its centre swings by ``bend_mm`` along y.

    Args:
        structure: Name.
        centre_lps_mm: Centre.
        radii_lps_mm: Half axes (x, y, z); positive.
        hu: Value inside.
        waves: Ripples; amplitudes sum to less than 0.5.
        is_tube: Tube instead of ellipsoid.
        bend_mm: Of a tube.

    Raises:
        GeometryError: If a radius is not positive or the ripples are too large.
    """

    structure: str
    centre_lps_mm: Triple
    radii_lps_mm: Triple
    hu: float
    waves: tuple[Wave, ...] = ()
    is_tube: bool = False
    bend_mm: float = 0.0

    def __post_init__(self) -> None:
        if min(self.radii_lps_mm) <= 0 or sum(abs(a) for _, a, _ in self.waves) >= 0.5:
            raise GeometryError(
                f"{self.structure}: radii must be positive and ripples below 0.5; got {self.radii_lps_mm} mm "
                f"and {self.waves}."
            )

    @property
    def z_range_mm(self) -> tuple[float, float]:
        """Where the organ starts and ends along z."""
        z, half = self.centre_lps_mm[2], self.radii_lps_mm[2]
        return z - half, z + half

    @property
    def volume_cm3(self) -> float:
        """Of the solid, in closed form."""
        x, y, z = self.radii_lps_mm
        height = 2 * z if self.is_tube else 4 / 3 * z
        return float(np.pi * x * y * height * self._ripple_factor) / 1000

    def area_mm2(self, z_mm: float) -> float:
        """Of the cross-section at ``z_mm``, in closed form; 0 outside."""
        size = self._size(z_mm)
        x, y, _ = self.radii_lps_mm
        return float(np.pi * x * y * size**2 * self._ripple_factor)

    def polygon(self, z_mm: float, points: int = POINTS_PER_POLYGON) -> FloatArray:
        """The outline at ``z_mm``: (points, 3) in LPS mm, scaled so that its area is `area_mm2` within 1e-4.

        Returns:
            (0, 3) outside the organ.
        """
        size = self._size(z_mm)
        if size <= 0:
            return np.zeros((0, 3))
        angle = 2 * np.pi * np.arange(points) / points
        inscribed = points / (2 * np.pi) * np.sin(2 * np.pi / points)
        reach = size * self._ripple(angle) / np.sqrt(inscribed)
        x, y = self._centre(np.asarray(z_mm))
        return np.stack(
            [
                x + self.radii_lps_mm[0] * reach * np.cos(angle),
                y + self.radii_lps_mm[1] * reach * np.sin(angle),
                np.full(points, z_mm),
            ],
            axis=1,
        )

    def depth_mm(self, x: Array, y: Array, z: Array) -> FloatArray:
        """Roughly how far points lie inside (positive) or outside (negative); broadcasts."""
        cx, cy = self._centre(z)
        u, v = (x - cx) / self.radii_lps_mm[0], (y - cy) / self.radii_lps_mm[1]
        w = (z - self.centre_lps_mm[2]) / self.radii_lps_mm[2]
        reach = self._ripple(np.arctan2(v, u)) if self.waves else 1.0
        radius = min(self.radii_lps_mm[:2])
        if self.is_tube:
            across = (reach - np.hypot(u, v)) * radius
            along = (1 - np.abs(w)) * self.radii_lps_mm[2]
            return np.asarray(np.minimum(across, along))
        u, v = u / reach, v / reach
        return np.asarray((1 - np.sqrt(u**2 + v**2 + w**2)) * min(self.radii_lps_mm))

    @property
    def _ripple_factor(self) -> float:
        return 1 + sum(amplitude**2 for _, amplitude, _ in self.waves) / 2

    def _ripple(self, angle: Array) -> FloatArray:
        return np.asarray(1 + sum(a * np.cos(k * angle + p) for k, a, p in self.waves))

    def _size(self, z_mm: float) -> float:
        w = (z_mm - self.centre_lps_mm[2]) / self.radii_lps_mm[2]
        if abs(w) >= 1:
            return 0.0
        return 1.0 if self.is_tube else float(np.sqrt(1 - w**2))

    def _centre(self, z: Array) -> tuple[float, Array]:
        w = (z - self.centre_lps_mm[2]) / self.radii_lps_mm[2]
        bend = self.bend_mm * np.sin(np.pi * w) if self.bend_mm else np.zeros_like(w)
        return self.centre_lps_mm[0], self.centre_lps_mm[1] + bend


def paint(image_hu: FloatArray, organs: Sequence[Organ], grid: Grid) -> None:
    """Paint organs into a float image, in place, later ones over earlier ones, with soft edges of a voxel.

    Args:
        image_hu: (Z, Y, X).
        organs: In order.
        grid: Axis-aligned with x along X, y along Y and z along Z.
    """
    (nz, ny, nx), (sz, sy, sx) = grid.shape_zyx, grid.spacing_zyx_mm
    ox, oy, oz = grid.affine.origin_lps_mm
    z, y, x = oz + sz * np.arange(nz), oy + sy * np.arange(ny), ox + sx * np.arange(nx)
    for organ in organs:
        window = []
        for axis, position, reach in ((0, x, 1.5), (1, y, 1.5), (2, z, 1.0)):
            half = organ.radii_lps_mm[axis] * reach + (abs(organ.bend_mm) if axis == 1 else 0) + 2 * sx
            near = np.flatnonzero(np.abs(position - organ.centre_lps_mm[axis]) <= half)
            window.append(slice(near[0], near[-1] + 1) if len(near) else slice(0, 0))
        xs, ys, zs = window
        depth = organ.depth_mm(x[None, None, xs], y[None, ys, None], z[zs, None, None])
        share = np.clip(0.5 + depth / sx, 0, 1)
        part = image_hu[zs, ys, xs]
        part += share * (organ.hu - part)


def paint_at(
    image_hu: FloatArray, organs: Sequence[Organ], points_lps_mm: FloatArray, soft_mm: float
) -> None:
    """Paint as `paint` does, but each voxel of the image shows the organs at a point of its own.

    Args:
        image_hu: (Z, Y, X), changed in place.
        organs: In order.
        points_lps_mm: (Z, Y, X, 3): the point (x, y, z) whose tissue each voxel shows.
        soft_mm: Width of the soft edges.
    """
    x, y, z = points_lps_mm[..., 0], points_lps_mm[..., 1], points_lps_mm[..., 2]
    for organ in organs:
        share = np.clip(0.5 + organ.depth_mm(x, y, z) / soft_mm, 0, 1)
        image_hu += share * (organ.hu - image_hu)
