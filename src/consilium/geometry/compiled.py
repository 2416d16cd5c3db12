"""The one way to compile a loop over voxels."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile ``function`` by numba at its first call; the machine code is kept on disk for later processes.

    Inside, only what numba knows works: arrays, numbers, tuples, loops and other compiled functions.
    """
    return cast(F, numba.njit(cache=True)(function))
