"""Names for array kinds, axes and units; importing this loads nothing but numpy.

Axis legend, valid in the whole package:

====================  ==========================================================
``(Z, Y, X)``         an image or mask; Z counts slices, Y rows, X columns
``(C, Z, Y, X)``      channels or structures first
``(B, C, Z, Y, X)``   a batch
``*_zyx``             a tuple in array order, e.g. ``shape_zyx``, ``spacing_zyx_mm``
``*_lps_mm``          a position or vector (x, y, z) in DICOM's patient system:
                      x to the Left, y to the Posterior, z to the Superior, in mm
``*_hu``              Hounsfield units
====================  ==========================================================
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]
"""Boolean array (Z, Y, X): True inside the structure."""

Shape: TypeAlias = tuple[int, int, int]
"""Number of voxels (Z, Y, X)."""

Triple: TypeAlias = tuple[float, float, float]

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(what, done, total)``; ``total`` is 0 while it is not known. Long work accepts one; only
``cli`` draws it."""


def no_progress(what: str, done: int, total: int) -> None:
    """The default `Progress`: say nothing."""
