"""Coordinates as DICOM decimal strings: at most 16 bytes each, with as many digits as are needed."""

from typing import Any

import numpy as np

from consilium.errors import GeometryError
from consilium.geometry.compiled import compiled
from consilium.types import Array

MAX_BYTES = 16
"""Of one decimal string (DICOM PS3.5 table 6.2-1)."""
MIN_DECIMALS, MAX_DECIMALS = 4, 7


def decimals_for(spacing_mm: float) -> int:
    """How many digits after the point place a coordinate within 1e-4 of ``spacing_mm``; 4 to 7."""
    wanted = int(np.ceil(4 - np.log10(spacing_mm)))
    return min(MAX_DECIMALS, max(MIN_DECIMALS, wanted))


def format_decimals(values: Array, decimals: int) -> bytes:
    """Numbers joined by backslashes, rounded to ``decimals`` digits, without trailing zeros.

    Args:
        values: Any shape, in mm.
        decimals: Digits after the point, 0 to 7.

    Returns:
        The bytes, padded by a space to even length; empty for no values.

    Raises:
        GeometryError: If a number is not finite or too large for 16 bytes.
    """
    numbers = np.ascontiguousarray(values, dtype=np.float64).ravel()
    largest = float(np.abs(numbers).max(initial=0.0))
    limit = 10.0 ** (MAX_BYTES - 2 - decimals) - 1
    if not largest < limit:
        raise GeometryError(
            f"coordinates: each must fit a decimal string of {MAX_BYTES} bytes with {decimals} decimals, so "
            f"below {limit:.0f} mm; found {largest:g} mm. Check the grid's origin and spacing."
        )
    buffer = np.empty(len(numbers) * (MAX_BYTES + 1) + 1, dtype=np.uint8)
    used = _write(np.rint(numbers * 10.0**decimals).astype(np.int64), decimals, buffer)
    text = buffer[: max(0, used - 1)].tobytes()
    return text + b" " if len(text) % 2 else text


@compiled
def _write(scaled: Any, decimals: int, buffer: Any) -> int:
    """Write each number and a backslash after it; returns the bytes used."""
    digits = np.empty(24, np.uint8)
    used = 0
    for k in range(len(scaled)):
        value = scaled[k]
        if value < 0:
            buffer[used] = 45
            used += 1
            value = -value
        count = 0
        while value > 0 or count <= decimals:
            digits[count] = 48 + value % 10
            value //= 10
            count += 1
        least = 0
        while least < decimals and digits[least] == 48:
            least += 1
        for position in range(count - 1, least - 1, -1):
            if position == decimals - 1:
                buffer[used] = 46
                used += 1
            buffer[used] = digits[position]
            used += 1
        buffer[used] = 92
        used += 1
    return used
