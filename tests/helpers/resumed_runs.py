"""What a run records and claims about its privacy, compared by the tests of resumed runs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opacus.accountants import create_accountant
from tiny_runs import TINY

from fedsvd.privacy.accounting import Spend
from fedsvd.report.privacy_statement import statement_markdown
from fedsvd.runs.folder import read_rows, write_rows

COMMON = [*TINY, "train.local_steps=1"]
# Calibrated with an accountant that is fast, and with room for more rounds.
PRIVATE = ["privacy.accountant=rdp", "privacy.max_epsilon=40"]


class KilledError(BaseException):
    """Ends a run at once, like a signal: nothing handles it."""


def accounted(charges: Sequence[Spend], delta: float = 1e-5) -> float:
    """Return ε of charges, from Opacus itself."""
    accountant = create_accountant("rdp")
    accountant.history = [(spend.noise_multiplier, spend.sample_rate, spend.steps) for spend in charges]
    return float(accountant.get_epsilon(delta)) if charges else 0.0


def recorded(rows: Sequence[dict[str, Any]]) -> dict[str, list[Spend]]:
    """Return the charges that rows record, by client."""
    charges: dict[str, list[Spend]] = {}
    for row in rows:
        for name, charge in row.get("privacy", {}).get("charges", {}).items():
            spend = Spend(charge["noise_multiplier"], charge["sample_rate"], charge["steps"])
            charges.setdefault(name, []).append(spend)
    return charges


def claimed(folder: Path) -> float | None:
    """Return the ε that the statement of a run claims; None if it gives no guarantee."""
    statement = statement_markdown(folder)
    found = re.search(r"differentially private for it, with ε = ([0-9.]+)", statement)
    assert (found is None) == ("no guarantee" in statement or "has reported a" in statement or "no round" in statement)
    return float(found[1]) if found else None


def strip_settings(folder: Path) -> None:
    """Make rows like those of an earlier version of fedsvd."""
    rows = read_rows(folder / "metrics.jsonl")
    write_rows(folder / "metrics.jsonl", [{k: v for k, v in row.items() if k != "privacy"} for row in rows])
