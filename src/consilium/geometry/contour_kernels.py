"""The compiled loops behind contours: filling by scan lines, tracing along pixel edges, joining holes."""

from typing import Any

import numpy as np

from consilium.geometry.compiled import compiled


@compiled
def fill_slices(mask: Any, slices: Any, points_yx: Any, starts: Any) -> None:
    """Fill polygons into a zero uint8 mask (Z, Y, X): even-odd, exclusive or within a slice.

    Args:
        mask: (Z, Y, X) uint8 of zeros; filled in place with 0 and 1.
        slices: (K,) slice of each polygon, ascending.
        points_yx: (M, 2) index coordinates.
        starts: (K + 1,) where each polygon starts.
    """
    count = len(slices)
    k = 0
    while k < count:
        z = slices[k]
        plane = mask[z]
        ny, nx = plane.shape
        row_low, row_high, column_low = ny, -1, nx
        while k < count and slices[k] == z:
            start, stop = starts[k], starts[k + 1]
            k += 1
            previous = stop - 1
            for point in range(start, stop):
                y0, x0 = points_yx[previous, 0], points_yx[previous, 1]
                y1, x1 = points_yx[point, 0], points_yx[point, 1]
                previous = point
                if y0 == y1:
                    continue
                if y0 > y1:
                    y0, x0, y1, x1 = y1, x1, y0, x0
                first = max(0, int(np.ceil(y0)))
                last = min(ny, int(np.ceil(y1)))
                if first >= last:
                    continue
                row_low, row_high = min(row_low, first), max(row_high, last - 1)
                slope = (x1 - x0) / (y1 - y0)
                for row in range(first, last):
                    crossing = np.ceil(x0 + (row - y0) * slope)
                    if crossing >= nx:
                        continue
                    column = max(0, int(crossing))
                    plane[row, column] ^= 1
                    column_low = min(column_low, column)
        for row in range(row_low, row_high + 1):
            state = np.uint8(0)
            for column in range(column_low, nx):
                state ^= plane[row, column]
                plane[row, column] = state


@compiled
def trace_plane(pixels: Any) -> Any:
    """Outlines along pixel edges of a plane, holes joined to their outline by a keyhole.

    Pixels that touch only at a corner belong to different outlines. The keyhole runs along a line between two
    rows, there and back, where no pixel centre can meet it.

    Args:
        pixels: (Y, X) uint8, 0 or 1, with a rim of zeros.

    Returns:
        ``(corners, starts)``: (M, 2) int64 (y, x), where corner (r, c) is the one of pixel (r, c) nearest to
        pixel (0, 0); polygon k is ``corners[starts[k]:starts[k + 1]]``, every corner a turn. Outlines run so
        that the inside is on the right hand when y grows downwards.
    """
    rings, ring_starts = _trace_rings(pixels)
    count = len(ring_starts) - 1
    is_hole = np.zeros(count, np.bool_)
    any_hole = False
    for ring in range(count):
        is_hole[ring] = _doubled_area(rings, ring_starts[ring], ring_starts[ring + 1]) < 0
        any_hole |= is_hole[ring]
    if any_hole:
        rings, ring_starts = _join_holes(pixels, rings, ring_starts, is_hole)
    return _keep_turns(rings, ring_starts)


@compiled
def _trace_rings(pixels: Any) -> Any:
    """Every boundary as unit steps: corners and starts."""
    ny, nx = pixels.shape
    edges, tops = 0, 0
    for y in range(1, ny):
        for x in range(1, nx):
            value = pixels[y, x]
            edges += value != pixels[y - 1, x]
            edges += value != pixels[y, x - 1]
            tops += value > pixels[y - 1, x]
    corners = np.empty((edges, 2), np.int64)
    starts = np.empty(tops + 1, np.int64)
    done = np.zeros((ny, nx), np.bool_)
    used, rings = 0, 0
    starts[0] = 0
    for row in range(1, ny):
        for column in range(1, nx):
            if not (pixels[row, column] > pixels[row - 1, column]) or done[row, column]:
                continue
            y, x, direction = row, column, 0
            while True:
                if direction == 0:
                    if done[y, x]:
                        break
                    done[y, x] = True
                corners[used, 0], corners[used, 1] = y, x
                used += 1
                if direction == 0:
                    x += 1
                    right, left = pixels[y, x], pixels[y - 1, x]
                elif direction == 1:
                    y += 1
                    right, left = pixels[y, x - 1], pixels[y, x]
                elif direction == 2:
                    x -= 1
                    right, left = pixels[y - 1, x - 1], pixels[y, x - 1]
                else:
                    y -= 1
                    right, left = pixels[y - 1, x], pixels[y - 1, x - 1]
                if right == 0:
                    direction = (direction + 1) % 4
                elif left != 0:
                    direction = (direction + 3) % 4
            rings += 1
            starts[rings] = used
    return corners[:used], starts[: rings + 1]


@compiled
def _doubled_area(corners: Any, start: int, stop: int) -> int:
    """Twice the signed area; negative for holes."""
    total = 0
    previous = stop - 1
    for k in range(start, stop):
        total += corners[previous, 1] * corners[k, 0] - corners[k, 1] * corners[previous, 0]
        previous = k
    return total


@compiled
def _join_holes(pixels: Any, corners: Any, starts: Any, is_hole: Any) -> Any:
    """Merge every hole into what lies to its left, so that only outlines remain.

    From a hole's leftmost corner (of those the one of least row) the line to the left runs inside the
    structure until it meets another boundary at a corner that only one boundary passes. That boundary
    reaches farther left than the hole, so joining in this way makes no cycle.
    """
    owner = np.full(pixels.shape, -1, np.int64)
    for k in range(len(corners)):
        owner[corners[k, 0], corners[k, 1]] = k
    count = len(starts) - 1
    hole_at = np.full(len(corners), -1, np.int64)
    joint = np.full(count, -1, np.int64)
    first = starts[:-1].copy()
    holes = 0
    for ring in range(count):
        if not is_hole[ring]:
            continue
        holes += 1
        best = starts[ring]
        for k in range(starts[ring], starts[ring + 1]):
            y, x = corners[k, 0], corners[k, 1]
            if x < corners[best, 1] or (x == corners[best, 1] and y < corners[best, 0]):
                best = k
        y, x = corners[best, 0], corners[best, 1]
        while pixels[y - 1, x - 1] != 0 and pixels[y, x - 1] != 0:
            x -= 1
        first[ring] = best
        joint[ring] = owner[y, x]
        hole_at[owner[y, x]] = ring
    out = np.empty((len(corners) + 2 * holes, 2), np.int64)
    out_starts = np.empty(count - holes + 1, np.int64)
    stack = np.empty(count, np.int64)
    walked = np.zeros(count, np.int64)
    used, polygons = 0, 0
    out_starts[0] = 0
    for outline in range(count):
        if is_hole[outline]:
            continue
        depth = 0
        stack[0] = outline
        while depth >= 0:
            ring = stack[depth]
            length = starts[ring + 1] - starts[ring]
            if walked[ring] == length:
                depth -= 1
                if is_hole[ring]:
                    out[used] = corners[first[ring]]
                    out[used + 1] = corners[joint[ring]]
                    used += 2
                continue
            k = starts[ring] + (first[ring] - starts[ring] + walked[ring]) % length
            walked[ring] += 1
            out[used] = corners[k]
            used += 1
            if hole_at[k] >= 0:
                depth += 1
                stack[depth] = hole_at[k]
        polygons += 1
        out_starts[polygons] = used
    return out[:used], out_starts[: polygons + 1]


@compiled
def _keep_turns(corners: Any, starts: Any) -> Any:
    """Drop corners where the path runs straight on."""
    out = np.empty_like(corners)
    out_starts = np.empty_like(starts)
    out_starts[0] = 0
    used = 0
    for polygon in range(len(starts) - 1):
        start, stop = starts[polygon], starts[polygon + 1]
        previous = stop - 1
        for k in range(start, stop):
            following = k + 1 if k + 1 < stop else start
            straight = True
            for axis in range(2):
                before = np.sign(corners[k, axis] - corners[previous, axis])
                after = np.sign(corners[following, axis] - corners[k, axis])
                straight = straight and before == after
            previous = k
            if not straight:
                out[used] = corners[k]
                used += 1
        out_starts[polygon + 1] = used
    return out[:used], out_starts
