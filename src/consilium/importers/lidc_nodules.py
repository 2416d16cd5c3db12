"""Readings of LIDC as voxels, and which readings of several readers are the same nodule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.spatial import cKDTree

from consilium.geometry.affine import Affine
from consilium.importers.lidc_xml import Outline, Reading
from consilium.types import Array, FloatArray, Mask

SliceOf = Callable[[Outline], int | None]
"""Index of the slice an outline lies on; None if the series does not have it."""

_BITS = 20


@dataclass(frozen=True, eq=False)
class VoxelReading:
    """One reading as voxels.

    Attributes:
        reader: Index of the session.
        voxels_zyx: (N, 3) int, N ≥ 1, sorted, each once.
        centre_lps_mm: (3,) centre of mass.
        diameter_mm: Of the sphere of the same volume.
        source: What was read.
    """

    reader: int
    voxels_zyx: Array
    centre_lps_mm: FloatArray
    diameter_mm: float
    source: Reading

    @classmethod
    def of(cls, reader: int, voxels_zyx: Array, affine: Affine, source: Reading) -> "VoxelReading":
        """With centre and diameter on a grid."""
        volume_mm3 = len(voxels_zyx) * affine.voxel_volume_mm3
        centre = affine.to_points(voxels_zyx.mean(axis=0))
        return cls(reader, voxels_zyx, centre, float((6 * volume_mm3 / np.pi) ** (1 / 3)), source)


@dataclass(frozen=True, eq=False)
class Nodule:
    """The readings that mean one nodule, in the order of their readers; a reader may have split it."""

    readings: tuple[VoxelReading, ...]

    @property
    def readers(self) -> tuple[int, ...]:
        """Who saw it, each once, ascending."""
        return tuple(sorted({r.reader for r in self.readings}))

    @property
    def centre_lps_mm(self) -> FloatArray:
        """Mean over the readers of the centre of mass of each one's `main_reading`."""
        centres = [self.main_reading(r).centre_lps_mm for r in self.readers]
        return np.asarray(np.mean(centres, axis=0))

    @property
    def diameter_mm(self) -> float:
        """Mean over the readers of the diameter of the sphere that has the volume of all they outlined."""
        cubes = [
            sum(r.diameter_mm**3 for r in self.readings if r.reader == reader) for reader in self.readers
        ]
        return float(np.mean(np.cbrt(cubes)))

    def main_reading(self, reader: int) -> VoxelReading:
        """Of a reader who split the nodule, the piece that others agree with most; else the only one."""
        own = [r for r in self.readings if r.reader == reader]
        if len(own) == 1:
            return own[0]
        others = [encode(r.voxels_zyx) for r in self.readings if r.reader != reader]
        outlined = np.concatenate([np.zeros(0, np.int64), *others])
        return max(own, key=lambda r: (np.isin(encode(r.voxels_zyx), outlined).sum(), len(r.voxels_zyx)))

    def voxels_of(self, reader: int) -> Array:
        """(N, 3) voxels that a reader outlined, each once; none if the reader did not see it."""
        own = [r.voxels_zyx for r in self.readings if r.reader == reader]
        return (
            decode(np.unique(np.concatenate([encode(v) for v in own]))) if own else np.zeros((0, 3), np.int64)
        )

    def voxels_and_votes(self) -> tuple[Array, Array]:
        """(N, 3) voxels that anybody outlined and (N,) by how many readers."""
        codes = np.concatenate([encode(self.voxels_of(reader)) for reader in self.readers])
        voxels, votes = np.unique(codes, return_counts=True)
        return decode(voxels), votes


def fill_outline(points_xy: Array) -> tuple[Mask, tuple[int, int]]:
    """The pixels strictly inside an outline; the pixels on the line are not inside.

    An open outline is closed by a straight line. Self-intersections count by the even-odd rule.

    Args:
        points_xy: (N, 2) whole pixel coordinates, N ≥ 1.

    Returns:
        (Y, X) mask of the bounding box, all False below three points, and the box's first (row, column).
    """
    inside, _, corner = _scan(points_xy)
    return inside, corner


def fill_hole(points_xy: Array) -> tuple[Mask, tuple[int, int]]:
    """As `fill_outline`, with the pixels on the line: they lie outside the nodule, so in the hole."""
    inside, line, corner = _scan(points_xy)
    return inside | line, corner


def voxels_of_reading(reading: Reading, slice_of: SliceOf) -> tuple[Array, int]:
    """What a reading outlines.

    On each slice the outlines apply from the largest to the smallest, so that an island in a hole in a nodule
    comes out right, whatever their order in the file.

    Returns:
        (N, 3) voxels, sorted, each once, and the number of outlines whose slice the series does not have.
    """
    slices: dict[int, list[Outline]] = {}
    lost = 0
    for outline in reading.outlines:
        index = slice_of(outline)
        if index is None:
            lost += 1
        else:
            slices.setdefault(index, []).append(outline)
    codes = [np.zeros(0, np.int64)]
    for index, outlines in sorted(slices.items()):
        pixels = _pixels(outlines)
        codes.append(encode(np.column_stack([np.full(len(pixels), index), pixels])))
    return decode(np.concatenate(codes)), lost


def cluster_readings(readings: Sequence[VoxelReading]) -> tuple[Nodule, ...]:
    """Which readings are one nodule; the data set does not say.

    First, pairs of different readers that overlap, or lie nearer than the sum of their radii, are joined from
    the best match to the worst, never two readings of one reader. Then a cluster that shares readers with
    another joins it if the two are one thing that some readers split (`_is_split`).

    Returns:
        The nodules, largest diameter first; every reading is in exactly one.
    """
    clusters = _match(readings)
    merged = True
    while merged:
        merged = False
        for a, b in combinations(clusters, 2):
            if _is_split(a, b):
                clusters = [c for c in clusters if c is not a and c is not b] + [[*a, *b]]
                merged = True
                break
    nodules = [Nodule(tuple(sorted(c, key=lambda r: (r.reader, -len(r.voxels_zyx))))) for c in clusters]
    return tuple(sorted(nodules, key=lambda n: (-n.diameter_mm, *n.centre_lps_mm)))


def encode(voxels_zyx: Array) -> Array:
    """(N,) one whole number per voxel, in the order of (z, y, x)."""
    z, y, x = np.asarray(voxels_zyx, np.int64).reshape(-1, 3).T
    return (z << (2 * _BITS)) | (y << _BITS) | x


def decode(codes: Array) -> Array:
    """The inverse of `encode`."""
    low = (1 << _BITS) - 1
    return np.column_stack([codes >> (2 * _BITS), (codes >> _BITS) & low, codes & low])


def _match(readings: Sequence[VoxelReading]) -> list[list[VoxelReading]]:
    codes = [encode(r.voxels_zyx) for r in readings]
    pairs: list[tuple[float, int, int]] = []
    for i, j in combinations(range(len(readings)), 2):
        if readings[i].reader != readings[j].reader:
            score = _likeness(readings[i], readings[j], codes[i], codes[j])
            if score is not None:
                pairs.append((score, i, j))
    cluster_of = [[i] for i in range(len(readings))]
    for _, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2])):
        a, b = cluster_of[i], cluster_of[j]
        if a is b or {readings[k].reader for k in a} & {readings[k].reader for k in b}:
            continue
        a.extend(b)
        for k in b:
            cluster_of[k] = a
    unique = {id(c): c for c in cluster_of}
    return [[readings[k] for k in c] for c in unique.values()]


def _likeness(a: VoxelReading, b: VoxelReading, codes_a: Array, codes_b: Array) -> float | None:
    """Dice if they overlap, else minus the distance in sums of radii if that is below 1; None if neither."""
    distance = float(np.linalg.norm(a.centre_lps_mm - b.centre_lps_mm))
    both = len(np.intersect1d(codes_a, codes_b, assume_unique=True))
    if both:
        return 2 * both / (len(codes_a) + len(codes_b))
    reach = (a.diameter_mm + b.diameter_mm) / 2
    return -distance / reach if distance < reach else None


def _is_split(a: list[VoxelReading], b: list[VoxelReading]) -> bool:
    """Whether two clusters with readers in common are one nodule that these readers split.

    So if a single reader has outlines in both and the two touch; or if at least half of the smaller was also
    outlined by readers who drew one nodule only, and these are no fewer than those who drew two.
    """
    if sum(len(r.voxels_zyx) for r in a) < sum(len(r.voxels_zyx) for r in b):
        a, b = b, a
    in_a, in_b = {r.reader for r in a}, {r.reader for r in b}
    splitters, joiners = in_a & in_b, in_a - in_b
    if not splitters:
        return False
    if len(splitters) == 1 and in_b == splitters and _touch(a, b):
        return True
    joined = [encode(r.voxels_zyx) for r in a if r.reader in joiners]
    if len(joiners) < len(splitters) or not joined:
        return False
    small = np.unique(np.concatenate([encode(r.voxels_zyx) for r in b]))
    return float(np.isin(small, np.concatenate(joined)).mean()) >= 0.5


def _touch(a: list[VoxelReading], b: list[VoxelReading]) -> bool:
    """Whether a voxel of one is a voxel of the other or one of its 26 neighbours."""
    tree = cKDTree(np.concatenate([r.voxels_zyx for r in a]))
    points = np.concatenate([r.voxels_zyx for r in b])
    distances, _ = tree.query(points, p=np.inf, distance_upper_bound=1.5)
    return bool(np.isfinite(distances).any())


def _pixels(outlines: Sequence[Outline]) -> Array:
    """(N, 2) pixels (row, column) inside the outlines of one slice."""
    filled = [(fill_outline if o.inclusion else fill_hole)(o.points_xy) for o in outlines]
    order = np.argsort([-mask.size for mask, _ in filled], kind="stable")
    low = np.min([corner for _, corner in filled], axis=0)
    high = np.max([np.add(corner, mask.shape) for mask, corner in filled], axis=0)
    canvas = np.zeros(high - low, dtype=bool)
    for k in order:
        mask, corner = filled[k]
        row, column = np.subtract(corner, low)
        part = canvas[row : row + mask.shape[0], column : column + mask.shape[1]]
        part[mask] = outlines[k].inclusion
    return np.asarray(np.argwhere(canvas) + low)


def _scan(points_xy: Array) -> tuple[Mask, Mask, tuple[int, int]]:
    """Inside by even-odd without the line, the line, and the box's corner (row, column).

    Pixel centres lie on whole numbers like the points, so all is exact.
    """
    points = np.asarray(points_xy, np.int64)
    low = points.min(axis=0)
    width, height = points.max(axis=0) - low + 1
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    inside, line = np.zeros((height, width), bool), np.zeros((height, width), bool)
    local = points - low
    for (ax, ay), (bx, by) in zip(local, np.roll(local, -1, axis=0), strict=True):
        dx, dy = bx - ax, by - ay
        rows, columns = _span(ay, by), _span(ax, bx)
        cross = (x[:, columns] - ax) * dy - (y[rows] - ay) * dx
        line[rows, columns] |= cross == 0
        if dy:
            half_open = slice(min(ay, by), max(ay, by))
            side = (x - ax) * dy - (y[half_open] - ay) * dx
            inside[half_open] ^= side * np.sign(dy) < 0
    return inside & ~line, line, (int(low[1]), int(low[0]))


def _span(a: int, b: int) -> slice:
    return slice(min(a, b), max(a, b) + 1)
