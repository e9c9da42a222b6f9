"""Output of the commands that read a user's data: JSON, and the rows that were left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from fedsvd.report.literal import literal


def to_json(value: Any) -> str:
    """Return a JSON document on one line; numbers that JSON does not have (NaN, infinity) become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def print_note(message: object, *, style: str = "") -> None:
    """Print a line on standard error, so that standard output holds results only."""
    Console(stderr=True).print(literal(message, style), soft_wrap=True)


def warn_left_out(items: Iterable[object]) -> None:
    """Print a warning for each file of which rows are left out."""
    for item in items:
        print_note(f"warning: {item}", style="yellow")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
