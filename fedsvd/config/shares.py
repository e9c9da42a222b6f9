"""Shares of a number of clients."""

from __future__ import annotations

# Far above the rounding error of a product with any number of clients, far below the difference of two shares.
_DIGITS = 9


def share_of(share: float, count: int) -> float:
    """Return ``share · count`` such that a whole number is one: as floats, 0.56 · 25 > 14 and 0.29 · 100 < 29.

    Args:
        share: A share, as configured: a decimal number, or a fraction such as 2/3 to the precision of a float.
        count: What it is a share of.
    """
    return round(share * count, _DIGITS)
