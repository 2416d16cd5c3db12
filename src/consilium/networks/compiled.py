"""numba's compiler with types, for the loops of the networks."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code at the first call, kept on disk; it runs beside Python and keeps the function's type."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
