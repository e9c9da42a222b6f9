"""Tables and verdict of an audit, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from rich.table import Table

from fedsvd.privacy.rounding import rounded_up


def verdict(result: Mapping[str, Any]) -> str:
    """Return one sentence that says whether the audit contradicts the claimed ε.

    Args:
        result: Content of ``audit.json``.
    """
    outcome = "is CONTRADICTED" if result["contradicts_claim"] else "stands"
    return (
        f"audited ε ≥ {_rounded_down(result['audited_epsilon'])} at {result['confidence']:.0%} confidence; "
        f"the claim ε = {rounded_up(result['claimed_epsilon'], 2)} {outcome}."
    )


def audit_table(result: Mapping[str, Any]) -> Table:
    """Return a table of the lower bound on ε and the numbers it is computed from."""
    table = Table(title=f"One-run audit of client {result['settings']['partition_id']} at δ = {result['delta']:g}")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for name, value in (
        ("claimed ε", rounded_up(result["claimed_epsilon"], 4)),
        (f"audited ε, {result['confidence']:.0%} confidence", f"≥ {_rounded_down(result['audited_epsilon'])}"),
        ("largest bound this many canaries can show", _rounded_down(result["largest_possible_bound"])),
        ("correct guesses", f"{result['num_correct']} of {result['num_guesses']}"),
        ("canaries", str(result["num_canaries"])),
        ("sabotage", result["settings"]["sabotage"]),
        ("seconds", f"{result['seconds']:.1f}"),
    ):
        table.add_row(name, value)
    return table


def attacks_table(result: Mapping[str, Any]) -> Table:
    """Return a table of how well each attack separates members from non-members."""
    table = Table(title="Membership inference attacks")
    for heading in ("attack", "AUC", "TPR at 1 % FPR"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for name, attack in result["attacks"].items():
        table.add_row(name, f"{attack['auc']:.3f}", f"{attack['tpr_at_1_percent_fpr']:.1%}")
    return table


def _rounded_down(epsilon: float) -> str:
    """Format a lower bound with two decimals, rounded down so that it never exceeds the proven value."""
    return str(Decimal(repr(epsilon)).quantize(Decimal("0.01"), rounding=ROUND_FLOOR))
