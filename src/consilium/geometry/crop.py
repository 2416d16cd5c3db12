"""Boxes of voxels: crop, pad and put back, with exact inverses."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.errors import GeometryError
from consilium.types import Array, Shape


@dataclass(frozen=True)
class Box:
    """Voxels from ``start_zyx`` up to, not including, ``stop_zyx``; may reach outside the array.

    Raises:
        GeometryError: If an edge is empty.
    """

    start_zyx: Shape
    stop_zyx: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_zyx", tuple(int(n) for n in self.start_zyx))
        object.__setattr__(self, "stop_zyx", tuple(int(n) for n in self.stop_zyx))
        if any(stop <= start for start, stop in zip(self.start_zyx, self.stop_zyx, strict=True)):
            raise GeometryError(f"box: stop must lie beyond start; got {self.start_zyx} to {self.stop_zyx}.")

    @property
    def shape_zyx(self) -> Shape:
        """Lengths of the edges in voxels."""
        (a, b, c), (d, e, f) = self.start_zyx, self.stop_zyx
        return d - a, e - b, f - c

    @classmethod
    def around(cls, mask: Array) -> "Box | None":
        """The smallest box that holds every True voxel of (Z, Y, X); None if there is none."""
        bounds = []
        for axis in range(3):
            others = tuple(k for k in range(3) if k != axis)
            hit = np.flatnonzero(mask.any(axis=others))
            if hit.size == 0:
                return None
            bounds.append((int(hit[0]), int(hit[-1]) + 1))
        (z0, z1), (y0, y1), (x0, x1) = bounds
        return cls((z0, y0, x0), (z1, y1, x1))

    @classmethod
    def centred(cls, centre_zyx: tuple[float, float, float], shape_zyx: Shape) -> "Box":
        """The box of a shape whose middle lies nearest to ``centre_zyx`` (voxel centres are integers)."""
        start = [round(c - (n - 1) / 2) for c, n in zip(centre_zyx, shape_zyx, strict=True)]
        z, y, x = start
        return cls((z, y, x), (z + shape_zyx[0], y + shape_zyx[1], x + shape_zyx[2]))

    def grown(self, margin_zyx: Shape) -> "Box":
        """With ``margin_zyx`` voxels more on both sides of each axis (fewer where negative)."""
        (a, b, c), (d, e, f), (z, y, x) = self.start_zyx, self.stop_zyx, margin_zyx
        return Box((a - z, b - y, c - x), (d + z, e + y, f + x))

    def clipped(self, shape_zyx: Shape) -> "Box":
        """The part inside an array of this shape.

        Raises:
            GeometryError: If nothing is inside.
        """
        start = tuple(max(0, s) for s in self.start_zyx)
        stop = tuple(min(n, s) for n, s in zip(shape_zyx, self.stop_zyx, strict=True))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box; only for boxes inside the array."""
        if min(self.start_zyx) < 0:
            raise GeometryError(f"box: must lie inside the array to index it; starts at {self.start_zyx}.")
        z, y, x = (slice(a, b) for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return z, y, x


def crop_or_pad(array: Array, box: Box, fill: float = 0) -> Array:
    """The voxels of ``box`` from the last three axes of ``array``; outside it, ``fill``.

    Returns:
        (..., Z, Y, X) of the box's shape: a view where the box lies inside, else a copy.
    """
    shape = array.shape[-3:]
    inside = all(a >= 0 for a in box.start_zyx) and all(
        b <= n for b, n in zip(box.stop_zyx, shape, strict=True)
    )
    if inside:
        part: Array = array[_last_axes(box.slices())]
        return part
    result = np.full((*array.shape[:-3], *box.shape_zyx), fill, dtype=array.dtype)
    source, target = _overlap(box, (shape[0], shape[1], shape[2]))
    if source is not None:
        result[_last_axes(target)] = array[_last_axes(source)]
    return result


def put_back(part: Array, box: Box, shape_zyx: Shape, fill: float = 0) -> Array:
    """The inverse of `crop_or_pad`: an array (..., Z, Y, X) of ``shape_zyx`` with ``part`` at ``box``.

    What of ``part`` lies outside the shape is dropped; voxels outside the box are ``fill``.
    """
    if part.shape[-3:] != box.shape_zyx:
        raise GeometryError(
            f"put_back: the part must have the box's shape {box.shape_zyx}; got {part.shape}."
        )
    result = np.full((*part.shape[:-3], *shape_zyx), fill, dtype=part.dtype)
    source, target = _overlap(box, shape_zyx)
    if source is not None:
        result[_last_axes(source)] = part[_last_axes(target)]
    return result


def _last_axes(slices: tuple[slice, ...]) -> tuple[Any, ...]:
    return (Ellipsis, *slices)


def _overlap(
    box: Box, shape_zyx: Shape
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | tuple[None, tuple[()]]:
    """Index of the overlap in the array, and in the box; (None, ()) where they do not meet."""
    source, target = [], []
    for start, stop, length in zip(box.start_zyx, box.stop_zyx, shape_zyx, strict=True):
        low, high = max(0, start), min(length, stop)
        if high <= low:
            return None, ()
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(source), tuple(target)
