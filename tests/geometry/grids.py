"""Grids in every orientation, for tests of geometry, importers and exporters."""

import itertools
from collections.abc import Iterator

import numpy as np

from consilium.geometry.affine import STANDARD_AXES_LPS, Affine
from consilium.geometry.volume import Grid
from consilium.types import FloatArray


def rotation(axis: tuple[float, float, float], degrees: float) -> FloatArray:
    """(3, 3) rotation about ``axis`` (Rodrigues)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


OBLIQUE_AXES_LPS = rotation((1.0, 2.0, 3.0), 25.0) @ STANDARD_AXES_LPS


def orientations() -> Iterator[tuple[str, FloatArray]]:
    """The 48 signed permutations of the axes and an oblique one: name, (3, 3) columns per array axis."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            axes = STANDARD_AXES_LPS[:, list(order)] * np.asarray(signs)
            yield "".join("zyx"[k] + ("+" if s > 0 else "-") for k, s in zip(order, signs, strict=True)), axes
    yield "oblique", OBLIQUE_AXES_LPS


def grid(
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    axes_lps: FloatArray = STANDARD_AXES_LPS,
) -> Grid:
    """A grid with an origin that is no round number."""
    return Grid(
        shape_zyx,
        Affine.from_spacing(spacing_zyx_mm, origin_lps_mm=(-31.25, 17.5, 402.125), axes_lps=axes_lps),
    )
