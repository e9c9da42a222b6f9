"""Tables of one run for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from rich.table import Table

PHASES = {
    "seconds_train": "clients' training, messages included",
    "seconds_aggregate": "server step",
    "seconds_evaluate": "evaluation",
    "seconds_write": "checkpoint and run folder",
}


_COLUMNS = {"num_examples": "d", "sample_rate": ".4f", "noise_multiplier": ".3f", "steps": "d"}


def _told(client: Mapping[str, Any], key: str, how: str) -> str:
    """Write a number, or a dash where a secure sum hides it."""
    return "–" if client[key] is None else format(client[key], how)


def rounded_up(epsilon: float, digits: int) -> str:
    """Write an ε with so many digits, rounded up: a budget must not look less spent than it is."""
    return str(Decimal(repr(epsilon)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy, loss, ε and bytes of each round."""
    table = Table(title="rounds")
    # A language model's rows tell how hard the answers were to guess, and how many it gives word for word.
    answers = any(row.get("perplexity") is not None for row in rows)
    for heading in (
        "round",
        "exact match" if answers else "accuracy",
        "perplexity" if answers else "loss",
        "largest ε",
        "clients",
        "KiB down",
        "KiB up",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["server_round"]),
            "–" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            _loss(row),
            "–" if row["epsilon"] is None else rounded_up(row["epsilon"], 2),
            f"{row['clients_used']}/{row['clients_sampled']}",
            f"{row['bytes_down'] / 1024:.0f}",
            f"{row['bytes_up'] / 1024:.0f}",
        )
    return table


def _loss(row: Mapping[str, Any]) -> str:
    if row["loss"] is None:
        return "–"
    return f"{row['loss']:.3f}" if row.get("perplexity") is None else f"{row['perplexity']:.2f}"


def clients_table(clients: Mapping[str, Mapping[str, Any]], target_delta: float, unit: str) -> Table:
    """What each client has spent, for each ``unit`` (example or client)."""
    table = Table(title=f"privacy spent, per {unit}, at δ = {target_delta:g}")
    for heading in ("client", "examples", "sample rate", "noise multiplier", "steps", "ε"):
        table.add_column(heading, justify="right")
    for name, client in sorted(clients.items(), key=lambda item: int(item[0])):
        table.add_row(
            name,
            *(_told(client, key, how) for key, how in _COLUMNS.items()),
            rounded_up(client["epsilon"], 4),
        )
    return table


def phases_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Seconds by phase, over all rounds."""
    table = Table(title="seconds by phase")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for key, what in PHASES.items():
        table.add_row(what, f"{sum(row[key] for row in rows):.2f}")
    return table
