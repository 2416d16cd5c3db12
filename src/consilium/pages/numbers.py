"""Numbers as people read them, the same on pages and in the terminal."""

DIGITS = 4


def format_number(value: float) -> str:
    """Four digits with their zeros, so that a column's decimals line up; "–" for NaN.

    Example:
        >>> format_number(0.685), format_number(1000.0), format_number(float("nan"))
        ('0.6850', '1000', '–')
    """
    return "–" if value != value else f"{value:#.{DIGITS}g}".rstrip(".")
