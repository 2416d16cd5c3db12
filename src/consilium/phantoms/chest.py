"""Phantom chests: ribs, vessels that look like nodules, and nodules known on paper."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from consilium.errors import ConfigurationError
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray, Mask, Shape, Triple

NODULE = "Nodule"
AIR_HU, LUNG_HU, SOFT_HU, FAT_HU, BONE_HU, VESSEL_HU = -1000.0, -860.0, 45.0, -95.0, 520.0, 40.0
SMALLEST_MM, LARGEST_MM = 4.0, 30.0
_NEAREST_MM = 4.0
_TRIES = 200


@dataclass(frozen=True, kw_only=True)
class ChestScanner:
    """How the CT look.

    Args:
        shape_zyx: Voxels.
        spacing_zyx_mm: Voxel size.
        noise_hu: Standard deviation behind the reconstruction kernel.
    """

    shape_zyx: Shape = (96, 128, 160)
    spacing_zyx_mm: Triple = (2.0, 1.75, 1.75)
    noise_hu: float = 30.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomNodule:
    """An ellipsoid.

    Args:
        centre_lps_mm: (x, y, z).
        semi_axes_mm: Half lengths of its three axes.
        axes_lps: (3, 3) orthonormal; row k is the direction of axis k.
        density_hu: Inside; ground glass is lighter than soft tissue.
    """

    centre_lps_mm: Triple
    semi_axes_mm: Triple
    axes_lps: FloatArray
    density_hu: float

    @property
    def volume_cm3(self) -> float:
        """In closed form."""
        return float(4 / 3 * np.pi * np.prod(self.semi_axes_mm)) / 1000

    @property
    def diameter_mm(self) -> float:
        """Of the sphere of the same volume."""
        return float(2 * np.cbrt(np.prod(self.semi_axes_mm)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChestPhantom:
    """One phantom patient.

    Args:
        image: int16 in Hounsfield units.
        labels: uint8 (Z, Y, X): nodule k + 1 where the voxel's centre lies in ``nodules[k]``; where two meet,
            the later.
        nodules: None is legal.
    """

    image: Volume
    labels: Array
    nodules: tuple[PhantomNodule, ...]


def make_chest(
    rng: np.random.Generator, *, nodules: int | None = None, scanner: ChestScanner | None = None
) -> ChestPhantom:
    """A chest with lungs, heart, spine, ribs, branching vessels and nodules.

    Some nodules touch a vessel or the chest wall, some are ground glass. What looks like a nodule and is
    none: vessels along the slice's normal, swellings where vessels branch, the ends of ribs next to the lung.

    Args:
        rng: Decides everything.
        nodules: How many; None draws 0 to 6. Fewer are made where no more find room.
        scanner: Image size, voxel size and noise.

    Raises:
        ConfigurationError: More than 50 nodules, or fewer than none.
    """
    if nodules is not None and not 0 <= nodules <= 50:
        raise ConfigurationError(f"phantom chest: nodules must be 0 to 50; got {nodules}.")
    scanner = scanner or ChestScanner()
    z, y, x = scanner.shape_zyx
    extent = (np.array([x, y, z]) - 1) * np.array(scanner.spacing_zyx_mm)[::-1]
    affine = Affine.from_spacing(scanner.spacing_zyx_mm, origin_lps_mm=tuple(-extent / 2))
    chest = _Chest(Grid(scanner.shape_zyx, affine), extent, rng)
    lungs = chest.paint_body()
    chest.paint_ribs()
    for side in (-1.0, 1.0):
        chest.paint_vessels(lungs, side)
    wanted = int(rng.integers(0, 7)) if nodules is None else nodules
    made = chest.paint_nodules(lungs, wanted)
    labels = np.zeros(scanner.shape_zyx, np.uint8)
    for k, nodule in enumerate(made):
        window, inside = chest.inside(nodule)
        labels[window][inside] = k + 1
    image = chest.image + _noise(rng, scanner)
    array = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    return ChestPhantom(image=Volume(array, chest.grid), labels=labels, nodules=tuple(made))


class _Chest:
    """The image while it is painted; distances in mm, borders one voxel soft."""

    def __init__(self, grid: Grid, extent_lps_mm: FloatArray, rng: np.random.Generator) -> None:
        self.grid, self.extent, self.rng = grid, extent_lps_mm, rng
        self.image = np.full(grid.shape_zyx, AIR_HU, np.float32)
        self.soft_mm = float(np.mean(grid.spacing_zyx_mm))
        self.vessel_ends: list[Array] = []
        self.axes = [
            origin + spacing * np.arange(n, dtype=np.float32)
            for origin, spacing, n in zip(
                grid.affine.origin_lps_mm, grid.spacing_zyx_mm[::-1], grid.shape_zyx[::-1], strict=True
            )
        ]

    def window(self, low: FloatArray, high: FloatArray) -> tuple[slice, slice, slice] | None:
        """The voxels whose centres lie in a box of LPS mm; None if none does."""
        found = [
            slice(int(np.searchsorted(a, lo)), int(np.searchsorted(a, hi, side="right")))
            for a, lo, hi in zip(self.axes, low, high, strict=True)
        ]
        if any(s.stop <= s.start for s in found):
            return None
        return found[2], found[1], found[0]

    def offsets(self, window: tuple[slice, slice, slice], centre: FloatArray) -> tuple[Array, Array, Array]:
        """x, y and z from a centre, ready to broadcast over (Z, Y, X)."""
        return (
            (self.axes[0][window[2]] - centre[0])[None, None, :],
            (self.axes[1][window[1]] - centre[1])[None, :, None],
            (self.axes[2][window[0]] - centre[2])[:, None, None],
        )

    def blend(self, window: tuple[slice, slice, slice], depth_mm: Array, hu: float) -> None:
        """Paint where the depth below a surface is positive, with partial volume at the border."""
        share = np.clip(depth_mm / self.soft_mm + 0.5, 0, 1).astype(np.float32)
        part = self.image[window]
        part += share * (hu - part)

    def ellipsoid_depth(
        self, window: tuple[slice, slice, slice], centre: FloatArray, semi_axes: FloatArray
    ) -> Array:
        """Approximate depth below an ellipsoid along the axes of the patient."""
        x, y, z = self.offsets(window, centre)
        a, b, c = semi_axes
        radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        depth: Array = (1 - radius) * min(semi_axes)
        return depth

    def paint_body(self) -> Mask:
        """Skin, fat, muscle, lungs, heart and spine; returns where the lungs are."""
        width, depth, height = self.extent / 2
        rng = self.rng
        everything = (slice(None), slice(None), slice(None))
        x, y, _ = self.offsets(everything, np.zeros(3))
        body = np.array([width * 0.93, depth * 0.9])
        for shrink, hu in ((0.0, FAT_HU), (9.0, SOFT_HU)):
            a, b = body - shrink
            flat = (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * min(a, b)
            self.blend(everything, np.broadcast_to(flat, self.grid.shape_zyx), hu)
        self.lung_centres, self.lung_axes = [], np.array([width * 0.36, depth * 0.66, height * 0.98])
        for side in (-1.0, 1.0):
            centre = np.array([side * width * 0.43, rng.uniform(-3, 3), rng.uniform(-6, 2)])
            self.lung_centres.append(centre)
            self.blend(everything, self.ellipsoid_depth(everything, centre, self.lung_axes), LUNG_HU)
        heart = np.array([width * 0.12, -depth * 0.2, -height * 0.45])
        self.blend(
            everything,
            self.ellipsoid_depth(everything, heart, np.array([width * 0.3, depth * 0.4, height * 0.5])),
            SOFT_HU,
        )
        spine = np.array([0.0, depth * 0.6])
        column = 16 - np.sqrt((x - spine[0]) ** 2 + (y - spine[1]) ** 2)
        self.blend(everything, np.broadcast_to(column, self.grid.shape_zyx), BONE_HU * 0.6)
        return np.asarray(self.image < LUNG_HU + 60) & (self._lung_depth() > 0)

    def _lung_depth(self) -> Array:
        everything = (slice(None), slice(None), slice(None))
        depths = [self.ellipsoid_depth(everything, c, self.lung_axes) for c in self.lung_centres]
        return np.maximum(*depths)

    def paint_ribs(self) -> None:
        """Curved rods around both lungs, sloping down to the front, some next to the pleura."""
        height = float(self.extent[2])
        gap = 26.0
        for side, centre in zip((-1.0, 1.0), self.lung_centres, strict=True):
            for top in np.arange(-height / 2 - 20, height / 2 + 40, gap):
                angles = np.linspace(-1.2, 1.35, 26)
                reach = self.lung_axes[:2] + 9.0 + self.rng.uniform(-1, 1)
                xs = centre[0] + side * reach[0] * np.cos(angles)
                ys = centre[1] + reach[1] * np.sin(angles)
                zs = top + 16 * np.sin(angles) + self.rng.uniform(-2, 2)
                points = np.column_stack([xs, ys, zs])
                for start, stop in pairwise(points):
                    self.capsule(start, stop, (5.0, 5.0), BONE_HU)

    def capsule(self, start: FloatArray, stop: FloatArray, radii: tuple[float, float], hu: float) -> None:
        """A rod with round ends whose radius changes linearly."""
        reach = max(radii) + self.soft_mm
        window = self.window(np.minimum(start, stop) - reach, np.maximum(start, stop) + reach)
        if window is None:
            return
        x, y, z = self.offsets(window, start)
        axis = stop - start
        along = (x * axis[0] + y * axis[1] + z * axis[2]) / max(float(axis @ axis), 1e-6)
        along = np.clip(along, 0, 1)
        gap = np.sqrt((x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (z - along * axis[2]) ** 2)
        self.blend(window, radii[0] + along * (radii[1] - radii[0]) - gap, hu)

    def paint_vessels(self, lungs: Mask, side: float) -> None:
        """Branching vessels from the hilum, ever thinner, with swellings where they branch."""
        rng = self.rng
        centre = self.lung_centres[0 if side < 0 else 1]
        root = centre - np.array([side * self.lung_axes[0] * 0.75, -5.0, 0.0])
        todo: list[tuple[Array, Array, float, int]] = []
        for _ in range(int(rng.integers(6, 10))):
            way = rng.normal(size=3) * [0.5, 1.0, 1.2] + [side * 0.8, 0, 0]
            todo.append((root, way / np.linalg.norm(way), float(rng.uniform(3.0, 5.0)), 0))
        while todo:
            start, way, radius, depth = todo.pop()
            stop = start + way * rng.uniform(10, 26) * (0.93**depth)
            if radius < 0.7 or depth > 7 or not self._holds(lungs, stop):
                continue
            thinner = radius * rng.uniform(0.72, 0.9)
            self.capsule(start, stop, (radius, thinner), VESSEL_HU)
            if rng.random() < 0.25:
                self.capsule(stop, stop, (thinner * 1.35, thinner * 1.35), VESSEL_HU)
            self.vessel_ends.append(stop)
            for _ in range(2):
                turned = way + rng.normal(size=3) * 0.45
                todo.append((stop, turned / np.linalg.norm(turned), thinner, depth + 1))

    def paint_nodules(self, lungs: Mask, wanted: int) -> list[PhantomNodule]:
        """Nodules apart from each other: free in the lung, at a vessel, or at the chest wall."""
        rng = self.rng
        depth = self._lung_depth()
        places = np.argwhere(lungs)
        made: list[PhantomNodule] = []
        for _ in range(_TRIES):
            if len(made) == wanted or not len(places):
                break
            size = float(np.exp(rng.uniform(np.log(SMALLEST_MM), np.log(LARGEST_MM))))
            kind = rng.random()
            index = places[rng.integers(len(places))]
            point: Array = self.grid.affine.to_points(index)
            if kind < 0.3 and self.vessel_ends:
                point = self.vessel_ends[int(rng.integers(len(self.vessel_ends)))] + rng.normal(size=3)
            at = np.rint(self.grid.affine.to_indices(point)).astype(int)
            if (at < 0).any() or (at >= self.grid.shape_zyx).any():
                continue
            below = float(depth[tuple(at)])
            fits = size * 0.15 < below < size * 0.5 if kind > 0.85 else below > size * 0.5
            apart = all(
                np.linalg.norm(point - n.centre_lps_mm) > (size + n.diameter_mm) / 2 + _NEAREST_MM
                for n in made
            )
            if fits and apart and self._far_from_ends(point, size):
                made.append(self._nodule(point, size))
                self._paint_nodule(made[-1])
        return made

    def inside(self, nodule: PhantomNodule) -> tuple[tuple[slice, slice, slice], Mask]:
        """The voxels whose centres lie in a nodule: a window and a mask in it."""
        window, radius = self._radius(nodule)
        return window, np.asarray(radius <= 1)

    def _nodule(self, point: FloatArray, size: float) -> PhantomNodule:
        rng = self.rng
        ratios = rng.uniform(0.8, 1.25, 3)
        semi = size / 2 * ratios / np.cbrt(np.prod(ratios))
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        ground_glass = rng.random() < 0.12 and size > 6
        hu = rng.uniform(-550, -350) if ground_glass else rng.uniform(-60, 70)
        a, b, c = (float(v) for v in semi)
        x, y, z = (float(v) for v in point)
        return PhantomNodule(centre_lps_mm=(x, y, z), semi_axes_mm=(a, b, c), axes_lps=axes, density_hu=hu)

    def _paint_nodule(self, nodule: PhantomNodule) -> None:
        window, radius = self._radius(nodule)
        self.blend(window, (1 - radius) * min(nodule.semi_axes_mm), nodule.density_hu)

    def _radius(self, nodule: PhantomNodule) -> tuple[tuple[slice, slice, slice], Array]:
        centre = np.array(nodule.centre_lps_mm)
        reach = max(nodule.semi_axes_mm) + 2 * self.soft_mm
        window = self.window(centre - reach, centre + reach)
        assert window is not None, "a nodule's centre lies in the image"
        x, y, z = self.offsets(window, centre)
        squares = [
            ((x * row[0] + y * row[1] + z * row[2]) / semi) ** 2
            for row, semi in zip(nodule.axes_lps, nodule.semi_axes_mm, strict=True)
        ]
        return window, np.sqrt(sum(squares))

    def _far_from_ends(self, point: FloatArray, size: float) -> bool:
        """Whether a nodule lies in the image with room around it."""
        return bool((np.abs(point) + size * 0.7 < self.extent / 2).all())

    def _holds(self, lungs: Mask, point: FloatArray) -> bool:
        index = np.rint(self.grid.affine.to_indices(point)).astype(int)
        inside = (index >= 0).all() and (index < self.grid.shape_zyx).all()
        return bool(inside and lungs[tuple(index)])


def _noise(rng: np.random.Generator, scanner: ChestScanner) -> FloatArray:
    """Noise as a reconstruction kernel leaves it: a little smooth, of the wanted strength."""
    white = rng.standard_normal(scanner.shape_zyx, dtype=np.float32)
    smooth: FloatArray = ndimage.gaussian_filter(white, 0.6)
    return smooth * np.float32(scanner.noise_hu / smooth.std())
