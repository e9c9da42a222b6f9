"""What one check came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One check's outcome.

    Attributes:
        what: What was looked at.
        state: ``ok``; ``note``: works, and may surprise; ``bad``: will not work.
        found: What there is.
        advice: What to do about it; empty where nothing need be done.
    """

    what: str
    state: Literal["ok", "note", "bad"]
    found: str
    advice: str = ""
