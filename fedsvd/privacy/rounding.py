"""How ε is written: rounded up."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal


def rounded_up(epsilon: float, digits: int) -> str:
    """Format ε with this many decimals, rounded up so that the privacy spent is never understated."""
    if math.isinf(epsilon):
        return "inf"
    # An accountant's bound may be negative at a large δ; then ε = 0 holds.
    return str(Decimal(repr(max(epsilon, 0.0))).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))
