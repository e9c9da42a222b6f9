"""What a field of the configuration may hold, by names that several groups share."""

from __future__ import annotations

from typing import Annotated

from fedsvd.config.validate import Range

Count = Annotated[int, Range(1)]
WholeNumber = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
# 0 included, 1 not: dropout and momentum.
Share = Annotated[float, Range(0, 1, open_high=True)]
