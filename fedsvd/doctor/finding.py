"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was checked.
        status: ``ok``; ``warning``: works, but may cause surprises; ``error``: will not work.
        detail: What the check found.
        advice: Suggested fix; empty if none is needed.
    """

    check: str
    status: Literal["ok", "warning", "error"]
    detail: str
    advice: str = ""
