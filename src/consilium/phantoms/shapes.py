"""Shapes for commissioning: discs that change along the slice normal, so every volume is known on paper."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from consilium.geometry.affine import STANDARD_AXES_LPS
from consilium.geometry.contours import slice_distance_mm
from consilium.geometry.volume import Grid
from consilium.types import FloatArray, Mask

POINTS = 96


@dataclass(frozen=True)
class Disc:
    """A disc in each plane parallel to the slices.

    Args:
        centre_vu_mm: Along Y and X from the grid's middle.
        radius_mm: Of the height above the middle slice, in mm; 0 where there is none.
    """

    centre_vu_mm: tuple[float, float]
    radius_mm: Callable[[float], float]


@dataclass(frozen=True)
class Shape:
    """Discs that are joined by exclusive or: what lies inside an odd number of them is inside.

    No two circles cross; a disc inside another one is a hole, or an island in a hole.

    Args:
        name: Of the shape.
        outer: Discs whose area counts.
        holes: Discs whose area is taken away.
        volume_cm3: Of the solid, in closed form.
    """

    name: str
    outer: tuple[Disc, ...]
    holes: tuple[Disc, ...]
    volume_cm3: float

    def area_mm2(self, height_mm: float) -> float:
        """Of the cross-section, in closed form."""
        return float(
            np.pi
            * (
                sum(d.radius_mm(height_mm) ** 2 for d in self.outer)
                - sum(d.radius_mm(height_mm) ** 2 for d in self.holes)
            )
        )

    def contoured_volume_cm3(self, grid: Grid, without: tuple[int, ...] = ()) -> float:
        """Closed-form areas on the grid's slices times their distance."""
        step = slice_distance_mm(grid)
        kept = (z for z in range(grid.shape_zyx[0]) if z not in without)
        return sum(self.area_mm2(_height_mm(grid, z)) for z in kept) * step / 1000

    def polygons(self, grid: Grid) -> list[FloatArray]:
        """Outlines on every slice, (96, 3) in LPS mm, each with exactly the area of its circle."""
        angle = 2 * np.pi * np.arange(POINTS) / POINTS
        to_equal_area = 1 / np.sqrt(POINTS / (2 * np.pi) * np.sin(2 * np.pi / POINTS))
        found = []
        for z in range(grid.shape_zyx[0]):
            for disc in (*self.outer, *self.holes):
                radius = disc.radius_mm(_height_mm(grid, z)) * to_equal_area
                if radius > 0:
                    v = disc.centre_vu_mm[0] + radius * np.sin(angle)
                    u = disc.centre_vu_mm[1] + radius * np.cos(angle)
                    found.append(_to_points(grid, z, v, u))
        return found


def shapes() -> tuple[Shape, ...]:
    """Sphere, ring, nested island, two blobs and tip; each within 36 mm of the middle, 60 mm high."""
    at = (0.37, -0.21)
    sphere = Shape("sphere", (Disc(at, _ball(20.0)),), (), 4 / 3 * np.pi * 20**3 / 1000)
    ring = Shape(
        "ring", (Disc(at, _rod(21, 16)),), (Disc(at, _rod(11, 16)),), np.pi * (21**2 - 11**2) * 0.032
    )
    island = Shape(
        "nested island",
        (Disc(at, _rod(22, 14)), Disc(at, _rod(7, 14))),
        (Disc(at, _rod(15, 14)),),
        np.pi * (22**2 - 15**2 + 7**2) * 0.028,
    )
    blobs = Shape(
        "two blobs",
        (Disc((-8.3, -13.1), _ball(12.0)), Disc((7.9, 12.6), _ball(10.0))),
        (),
        4 / 3 * np.pi * (12**3 + 10**3) / 1000,
    )
    tip = Shape("tip", (Disc(at, _cone(20.0, 44.0)),), (), np.pi * 20**2 * 44 / 3000)
    return sphere, ring, island, blobs, tip


def line_mask(grid: Grid, axis: int) -> Mask:
    """A line of single voxels through the middle along an array axis, from rim to rim."""
    mask = np.zeros(grid.shape_zyx, dtype=bool)
    index: list[int | slice] = [n // 2 for n in grid.shape_zyx]
    index[axis] = slice(None)
    mask[tuple(index)] = True
    return mask


def orientations() -> Iterator[tuple[str, FloatArray]]:
    """The 48 signed permutations of the axes and an oblique one: name, (3, 3) columns per array axis."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            name = "".join("SPL"[k] if s > 0 else "IAR"[k] for k, s in zip(order, signs, strict=True))
            yield name, STANDARD_AXES_LPS[:, list(order)] * np.asarray(signs)
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.deg2rad(25)
    rotation = np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross
    yield "oblique", rotation @ STANDARD_AXES_LPS


def _height_mm(grid: Grid, z: int) -> float:
    return (z - (grid.shape_zyx[0] - 1) / 2 + 0.13) * slice_distance_mm(grid)


def _to_points(grid: Grid, z: int, v_mm: FloatArray, u_mm: FloatArray) -> FloatArray:
    _, ny, nx = grid.shape_zyx
    _, sy, sx = grid.spacing_zyx_mm
    y, x = (ny - 1) / 2 + v_mm / sy, (nx - 1) / 2 + u_mm / sx
    return grid.affine.to_points(np.stack([np.full_like(y, z), y, x], axis=1))


def _ball(radius: float) -> Callable[[float], float]:
    return lambda height: float(np.sqrt(max(0.0, radius**2 - height**2)))


def _rod(radius: float, half: float) -> Callable[[float], float]:
    return lambda height: radius if abs(height) < half else 0.0


def _cone(radius: float, length: float) -> Callable[[float], float]:
    return lambda height: radius * max(0.0, 0.5 - height / length) if abs(height) < length / 2 else 0.0
