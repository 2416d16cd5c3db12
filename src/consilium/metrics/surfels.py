"""The area of the surface inside a 2x2x2 block of voxels, derived from geometry for all 256 blocks.

A block of eight neighbouring voxel centres is a cube. Where an edge joins an inside to an outside centre,
the surface passes through the edge's midpoint (marching cubes on a binary image).
"""

from collections import defaultdict
from functools import cache
from itertools import pairwise

import numpy as np

from consilium.types import Array, FloatArray, Triple

Corner = tuple[int, int, int]
Edge = frozenset[Corner]

FULL = 255
CORNERS: tuple[Corner, ...] = tuple((z, y, x) for z in (1, 0) for y in (1, 0) for x in (1, 0))
"""Corner (z, y, x) of bit 0, 1, ..., 7: bit 0 is the voxel farthest along all axes."""


def neighbour_codes(mask: Array) -> Array:
    """The 8-bit pattern of inside voxels around every voxel corner of a padded mask.

    Args:
        mask: (Z, Y, X) bool or uint8, with an empty border wherever the surface shall be closed.

    Returns:
        (Z-1, Y-1, X-1) uint8; bit b is set where the voxel at offset ``CORNERS[b]`` is inside.
    """
    inside = mask.astype(np.uint8, copy=False)
    shape = [n - 1 for n in inside.shape]
    codes = np.zeros(shape, np.uint8)
    for bit, start in enumerate(CORNERS):
        window = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        codes |= inside[window] << np.uint8(bit)
    return codes


def compute_surfel_areas(spacing_zyx_mm: Triple) -> FloatArray:
    """Surface area in mm² inside a 2x2x2 block, for each of the 256 neighbour codes.

    Definition: the rarer kind of corner (inside or outside; inside when four and four) is cut off; where a
    face of the cube is ambiguous, its two rarer corners are cut off separately. Loops of five midpoints are
    split into triangles so that their area at unit spacing is largest, loops of six by joining every
    second midpoint. These are the areas that Nikolov et al. published with the surface Dice.

    Args:
        spacing_zyx_mm: Voxel spacing, positive.

    Returns:
        (256,) float64, 0 for the empty and the full block.

    Source:
        Lorensen and Cline 1987 (marching cubes); Nikolov et al. 2021, J Med Internet Res 23(7):e26151.
    """
    dz, dy, dx = spacing_zyx_mm
    scaled = _normals() * np.array([dy * dx, dz * dx, dz * dy])
    areas: FloatArray = np.linalg.norm(scaled, axis=-1).sum(axis=-1)
    return areas


@cache
def _normals() -> FloatArray:
    """(256, 4, 3): half cross products of up to four triangles per code, at unit spacing."""
    normals = np.zeros((256, 4, 3))
    for code in range(1, FULL):
        triangles = [t for loop in _loops(code) for t in _triangulate(loop)]
        for i, (a, b, c) in enumerate(triangles):
            normals[code, i] = np.cross(b - a, c - a) / 2
    return normals


def _loops(code: int) -> list[list[FloatArray]]:
    """Closed loops of edge midpoints that bound the surface inside the block."""
    rare = code if code.bit_count() <= 4 else FULL ^ code
    inside = {corner: bool(rare >> bit & 1) for bit, corner in enumerate(CORNERS)}
    neighbours: dict[Edge, list[Edge]] = defaultdict(list)
    for face in _faces():
        edges = [frozenset((face[i], face[(i + 1) % 4])) for i in range(4)]
        cut = [edge for edge in edges if len({inside[corner] for corner in edge}) == 2]
        if len(cut) == 2:
            segments = [(cut[0], cut[1])]
        else:
            segments = [(edges[i], edges[i - 1]) for i in range(4) if cut and inside[face[i]]]
        for a, b in segments:
            neighbours[a].append(b)
            neighbours[b].append(a)
    loops = []
    left = dict.fromkeys(neighbours)
    while left:
        edge: Edge | None = next(iter(left))
        loop = []
        while edge is not None:
            loop.append(edge)
            del left[edge]
            edge = next((e for e in neighbours[edge] if e in left), None)
        loops.append([np.mean(np.array(sorted(e), np.float64), axis=0) for e in loop])
    return loops


def _faces() -> list[list[Corner]]:
    """The six faces of the cube, each as its four corners in turn."""
    faces = []
    for axis in range(3):
        for side in (0, 1):
            ring = [(0, 0), (0, 1), (1, 1), (1, 0)]
            faces.append([_corner(axis, side, u, v) for u, v in ring])
    return faces


def _corner(axis: int, side: int, u: int, v: int) -> Corner:
    values = [u, v]
    values.insert(axis, side)
    return values[0], values[1], values[2]


def _triangulate(loop: list[FloatArray]) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    if len(loop) == 6:
        ears = [(loop[i], loop[i + 1], loop[(i + 2) % 6]) for i in (0, 2, 4)]
        return [*ears, (loop[0], loop[2], loop[4])]
    fans = [_fan(loop[start:] + loop[:start]) for start in range(len(loop))]
    return max(fans, key=lambda fan: round(sum(_area(t) for t in fan), 9))


def _fan(loop: list[FloatArray]) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    return [(loop[0], b, c) for b, c in pairwise(loop[1:])]


def _area(triangle: tuple[FloatArray, FloatArray, FloatArray]) -> float:
    a, b, c = triangle
    return float(np.linalg.norm(np.cross(b - a, c - a))) / 2
