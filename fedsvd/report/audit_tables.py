"""An audit's outcome for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from rich.table import Table

from fedsvd.report.tables import rounded_up


def verdict(found: Mapping[str, Any]) -> str:
    """Say in one sentence whether the claim of an ``audit.json`` stands."""
    outcome = "is CONTRADICTED" if found["contradicts_claim"] else "stands"
    return (
        f"audited ε ≥ {_rounded_down(found['audited_epsilon'])} at {found['confidence']:.0%} confidence; "
        f"the claim ε = {rounded_up(found['claimed_epsilon'], 2)} {outcome}."
    )


def audit_table(found: Mapping[str, Any]) -> Table:
    """The bound and what it rests on."""
    table = Table(title=f"one-run audit of client {found['settings']['partition_id']}, at δ = {found['delta']:g}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for what, value in (
        ("claimed ε", rounded_up(found["claimed_epsilon"], 4)),
        (f"audited ε, {found['confidence']:.0%} confidence", f"≥ {_rounded_down(found['audited_epsilon'])}"),
        ("most that so many canaries can show", _rounded_down(found["largest_possible_bound"])),
        ("right guesses", f"{found['num_correct']} of {found['num_guesses']}"),
        ("canaries", str(found["num_canaries"])),
        ("sabotage", found["settings"]["sabotage"]),
        ("seconds", f"{found['seconds']:.1f}"),
    ):
        table.add_row(what, value)
    return table


def attacks_table(found: Mapping[str, Any]) -> Table:
    """How well each attack tells members from others."""
    table = Table(title="attacks")
    for heading in ("attack", "AUC", "TPR at 1 % FPR"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for name, attack in found["attacks"].items():
        table.add_row(name, f"{attack['auc']:.3f}", f"{attack['tpr_at_1_percent_fpr']:.1%}")
    return table


def _rounded_down(epsilon: float) -> str:
    """Write a lower bound with two digits: it must not look like more than was proved."""
    return str(Decimal(repr(epsilon)).quantize(Decimal("0.01"), rounding=ROUND_FLOOR))
