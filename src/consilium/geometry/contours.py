"""Polygons in the patient to a mask: even-odd at voxel centres, placed by coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.contour_kernels import fill_slices
from consilium.geometry.volume import Grid
from consilium.types import Array, FloatArray, Mask

PLANE_TOLERANCE_MM = 0.2
"""How far the points of one polygon may lie apart along the slice normal; never over a quarter of a slice."""
BETWEEN_SLICES_MM = 0.1
"""A polygon farther than this from the slice it is counted to is reported as lying between slices."""
HALFWAY_SLACK_MM = 0.02
"""Coordinates halfway between slices all go to the slice of greater index, however they were rounded."""
EDGE_SLACK = 0.01
"""Voxels beyond the image's edge that rounded coordinates of an outline along the edge may lie."""
SNAP = 2.0**20
"""Index coordinates are rounded to 1/SNAP of a voxel, so that rounding errors decide no tie."""


@dataclass(frozen=True, kw_only=True)
class PlacementReport:
    """What was met while polygons were placed on a grid; every count is of polygons.

    Args:
        polygons: Given.
        without_area: Fewer than three points: cover nothing.
        outside_slices: More than half a slice beyond the first or last slice: left out.
        outside_plane: Reach beyond the image's edge within their slice: cut off there.
        between_slices: Lie between two slices: counted to the nearer one.
        largest_offset_mm: Of those, the largest distance to their slice.
        superseded: Lie on another plane than the one nearest to their slice: left out.
        slices_without: Slices, not polygons: between the first and last that hold a polygon, those that hold
            none. They stay empty: nothing is interpolated.
    """

    polygons: int = 0
    without_area: int = 0
    outside_slices: int = 0
    outside_plane: int = 0
    between_slices: int = 0
    largest_offset_mm: float = 0.0
    superseded: int = 0
    slices_without: int = 0


@dataclass(frozen=True, eq=False)
class PlacedPolygons:
    """Polygons that have found their slices; `fill` makes the mask.

    Args:
        grid: The target.
        slices: (K,) slice of each polygon, ascending.
        points_yx: (M, 2) index coordinates of all points, one polygon after the other.
        starts: (K + 1,) where each polygon starts in ``points_yx``.
        report: What was met.
    """

    grid: Grid
    slices: Array
    points_yx: FloatArray
    starts: Array
    report: PlacementReport

    def fill(self) -> Mask:
        """Bool (Z, Y, X): voxel centres inside an odd number of the polygons of their slice."""
        mask = np.zeros(self.grid.shape_zyx, dtype=np.uint8)
        fill_slices(mask, self.slices, self.points_yx, self.starts)
        return mask.view(np.bool_)

    @property
    def volume_mm3(self) -> float:
        """Even-odd area of the polygons times the slice distance, where no two polygons cross.

        Nested polygons are subtracted; computed from the polygons, not from voxels.
        """
        return _signed_volume(self)


def mask_from_polygons(polygons_lps_mm: Sequence[Array], grid: Grid) -> Mask:
    """Voxels whose centres lie inside: bool (Z, Y, X); all False without polygons.

    Polygons of one slice are combined by exclusive or, so nested contours are holes and a keyhole is one too.
    A centre exactly on an edge belongs to the side of greater index. See `place_polygons` for the rules.

    Args:
        polygons_lps_mm: Each (N, 3), points (x, y, z); the last joins the first, which may be repeated.
        grid: Any orientation, also oblique and sheared.

    Raises:
        GeometryError: As `place_polygons`.

    Source:
        DICOM PS3.3 C.8.8.6.3, Contour Geometric Type CLOSED_PLANAR.
    """
    return place_polygons(polygons_lps_mm, grid).fill()


def place_polygons(polygons_lps_mm: Sequence[Array], grid: Grid) -> PlacedPolygons:
    """Find the slice of each polygon by its coordinates.

    A polygon is counted to the slice whose plane is nearest; halfway, to the slice of greater index. Where
    polygons of several planes are nearest to one slice (contours finer than the image), those of the nearest
    plane are taken. Slices without a polygon stay empty.

    Args:
        polygons_lps_mm: Each (N, 3), points (x, y, z) in LPS mm.
        grid: Any orientation, also oblique and sheared.

    Raises:
        GeometryError: If a coordinate is not finite, or a polygon is not parallel to the slices within
            `PLANE_TOLERANCE_MM` and a quarter of the slice distance.
    """
    given = len(polygons_lps_mm)
    _check_points(polygons_lps_mm)
    areal = [polygon for polygon in polygons_lps_mm if len(polygon) >= 3]
    if not areal:
        return _nothing(grid, PlacementReport(polygons=given, without_area=given))
    starts = np.concatenate([[0], np.cumsum([len(polygon) for polygon in areal])])
    index = grid.affine.to_indices(np.concatenate(areal))
    index = np.rint(index * SNAP) / SNAP
    step_mm = slice_distance_mm(grid)
    level = _levels(index[:, 0], starts, step_mm)
    nearest = np.floor(level + 0.5 + HALFWAY_SLACK_MM / step_mm).astype(np.int64)
    inside = (nearest >= 0) & (nearest < grid.shape_zyx[0])
    kept = inside & _on_nearest_plane(level, nearest, step_mm)
    order = np.flatnonzero(kept)[np.argsort(nearest[kept], kind="stable")]
    offset_mm = np.abs(level - nearest)[order] * step_mm
    between = offset_mm > BETWEEN_SLICES_MM
    used = np.unique(nearest[order])
    report = PlacementReport(
        polygons=given,
        without_area=given - len(areal),
        outside_slices=int((~inside).sum()),
        outside_plane=_count_outside_plane(index, starts, order, grid),
        between_slices=int(between.sum()),
        largest_offset_mm=float(offset_mm[between].max(initial=0.0)),
        superseded=int((inside & ~kept).sum()),
        slices_without=int(used[-1] - used[0] + 1 - len(used)) if len(used) else 0,
    )
    if not len(order):
        return _nothing(grid, report)
    lengths = np.diff(starts)[order]
    points = np.concatenate([index[starts[k] : starts[k + 1], 1:] for k in order])
    return PlacedPolygons(
        grid, nearest[order], points, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), report
    )


def slice_distance_mm(grid: Grid) -> float:
    """Distance between the planes of neighbouring slices: along their normal, shear or not."""
    return abs(float(grid.affine.slice_normal_lps @ grid.affine.matrix[:3, 0]))


def polygon_area_mm2(polygon_lps_mm: Array) -> float:
    """Area enclosed by a planar polygon (N, 3) that does not cross itself; 0 for fewer than three points."""
    if len(polygon_lps_mm) < 3:
        return 0.0
    points = np.asarray(polygon_lps_mm, dtype=np.float64)
    points = points - points[0]
    return float(np.linalg.norm(np.cross(points[:-1], points[1:]).sum(axis=0))) / 2


def _check_points(polygons: Sequence[Array]) -> None:
    for number, polygon in enumerate(polygons):
        if polygon.ndim != 2 or polygon.shape[1] != 3:
            raise GeometryError(f"polygon {number}: must have points (N, 3); got shape {polygon.shape}.")
        finite = np.isfinite(polygon).all(axis=1)
        if not finite.all():
            raise GeometryError(
                f"polygon {number}: every coordinate must be finite; {int((~finite).sum())} of "
                f"{len(polygon)} points are not, first point {int(np.argmin(finite))}."
            )


def _levels(z: FloatArray, starts: Array, step_mm: float) -> FloatArray:
    """The fractional slice of each polygon; refuses those that are not parallel to the slices."""
    low, high = np.minimum.reduceat(z, starts[:-1]), np.maximum.reduceat(z, starts[:-1])
    tolerance_mm = min(PLANE_TOLERANCE_MM, step_mm / 4)
    spread_mm = (high - low) * step_mm
    worst = int(np.argmax(spread_mm))
    if spread_mm[worst] > tolerance_mm + 1e-6:
        raise GeometryError(
            f"polygon with {starts[worst + 1] - starts[worst]} points: must be parallel to the slices within "
            f"{tolerance_mm:.3g} mm; its points lie {spread_mm[worst]:.3g} mm apart along the slice normal, "
            f"from slice {low[worst]:.2f} to {high[worst]:.2f}; so do "
            f"{int((spread_mm > tolerance_mm).sum())} of {len(spread_mm)} polygons. "
            "It was drawn on other planes than those of this image."
        )
    level: FloatArray = (low + high) / 2
    return level


def _on_nearest_plane(level: FloatArray, nearest: Array, step_mm: float) -> Array:
    """Whether a polygon lies on the plane that is nearest to its slice (halfway: on the lower plane)."""
    offset = level - nearest
    best = np.lexsort((offset, np.rint(np.abs(offset) * SNAP / 16), nearest))
    first = np.concatenate([[True], np.diff(nearest[best]) != 0])
    group = np.cumsum(first) - 1
    plane = np.empty_like(offset)
    plane[best] = offset[best][first][group]
    same: Array = np.abs(offset - plane) * step_mm <= min(PLANE_TOLERANCE_MM, step_mm / 4)
    return same


def _count_outside_plane(index: FloatArray, starts: Array, order: Array, grid: Grid) -> int:
    _, ny, nx = grid.shape_zyx
    y, x = index[:, 1], index[:, 2]
    edge = 0.5 + EDGE_SLACK
    beyond = (y < -edge) | (y > ny - 1 + edge) | (x < -edge) | (x > nx - 1 + edge)
    return int(np.logical_or.reduceat(beyond, starts[:-1])[order].sum())


def _nothing(grid: Grid, report: PlacementReport) -> PlacedPolygons:
    none = np.zeros(0, dtype=np.int64)
    return PlacedPolygons(grid, none, np.zeros((0, 2)), np.zeros(1, dtype=np.int64), report)


def _signed_volume(placed: PlacedPolygons) -> float:
    """Sum over slices of the areas, each with the sign of its nesting depth."""
    total = 0.0
    for k, polygon in enumerate(polygons := _split(placed)):
        mates = [m for m in np.flatnonzero(placed.slices == placed.slices[k]) if m != k]
        depth = sum(_holds(polygons[m], polygon[0]) for m in mates)
        y, x = polygon[:, 0], polygon[:, 1]
        area = abs(float(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1)))) / 2
        total += area if depth % 2 == 0 else -area
    return total * placed.grid.affine.voxel_volume_mm3


def _split(placed: PlacedPolygons) -> list[FloatArray]:
    return np.split(placed.points_yx, placed.starts[1:-1]) if len(placed.slices) else []


def _holds(polygon: FloatArray, point: FloatArray) -> bool:
    y, x = polygon[:, 0], polygon[:, 1]
    y1, x1 = np.roll(y, -1), np.roll(x, -1)
    crosses = (y <= point[0]) != (y1 <= point[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x + (point[0] - y) * (x1 - x) / (y1 - y)
    return bool(np.count_nonzero(crosses & (at <= point[1])) % 2)
