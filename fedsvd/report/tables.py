"""Tables of one run for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fedsvd.config.task import Metric
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.rounding import rounded_up

PHASES = {
    "seconds_train": "client training and messages",
    "seconds_aggregate": "server step",
    "seconds_evaluate": "evaluation",
    "seconds_write": "checkpoint and run directory",
}


def client_cells(client: Mapping[str, Any], charges: Sequence[Spend]) -> list[str]:
    """Return a client's number of examples, sample rate, noise multiplier and steps; dashes for what it does not send.

    Args:
        client: The client's entry of ``privacy.json``.
        charges: Its charges of the run, one per mechanism; a run with more rounds than planned has several.
    """
    rates = list(dict.fromkeys(f"{spend.sample_rate:.4f}" for spend in charges))
    noise = list(dict.fromkeys(f"{spend.noise_multiplier:.3f}" for spend in charges))
    if len(noise) > 1:
        noise = [f"{spend.noise_multiplier:.3f} ({spend.steps} steps)" for spend in charges]
    return [
        _format_or_dash(client["num_examples"], "d"),
        ", ".join(rates) or _format_or_dash(client["sample_rate"], ".4f"),
        ", ".join(noise) or _format_or_dash(client["noise_multiplier"], ".3f"),
        _format_or_dash(client["steps"], "d"),
    ]


def _format_or_dash(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def rounds_table(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Table:
    """Return a table of a metric, loss, ε and traffic of each round."""
    table = Table(title="Rounds")
    # Language models are measured by perplexity.
    answers = any(row.get("perplexity") is not None for row in rows)
    has_counts = all(map(has_client_counts, rows))
    headings = ("round", metric.label, "perplexity" if answers else "loss", "largest ε")
    for heading in (*headings, *(("clients", "KiB down", "KiB up") if has_counts else ())):
        table.add_column(heading, justify="right")
    for row in rows:
        kib = [f"{row[key] / 1024:.0f}" for key in ("bytes_down", "bytes_up")] if has_counts else []
        table.add_row(
            str(row["server_round"]),
            metric.format(row.get(metric.key)),
            _loss(row),
            "–" if row["epsilon"] is None else rounded_up(row["epsilon"], 2),
            *([participation(row), *kib] if has_counts else []),
        )
    return table


def has_client_counts(row: Mapping[str, Any]) -> bool:
    """Return whether a row has the numbers of clients and bytes; see `fedsvd.runs.outgoing` for those that do not."""
    return "clients_used" in row


def participation(row: Mapping[str, Any]) -> str:
    """Return how many of a round's clients were used; a dash if the row does not have it."""
    return f"{row['clients_used']}/{row['clients_sampled']}" if has_client_counts(row) else "–"


def _loss(row: Mapping[str, Any]) -> str:
    if row["loss"] is None:
        return "–"
    return f"{row['loss']:.3f}" if row.get("perplexity") is None else f"{row['perplexity']:.2f}"


def clients_table(clients: Mapping[str, Mapping[str, Any]], target_delta: float, unit: str) -> Table:
    """Return a table of the privacy spent by each client.

    Args:
        clients: Entries of ``privacy.json`` by client number.
        target_delta: δ at which ε is reported.
        unit: Unit of protection, ``example`` or ``client``.
    """
    table = Table(title=f"Privacy spent per {unit} at δ = {target_delta:g}")
    for heading in ("client", "examples", "sample rate", "noise multiplier", "steps", "ε"):
        table.add_column(heading, justify="right")
    for name, client in sorted(clients.items(), key=lambda item: int(item[0])):
        charges = [Spend(**charge) for charge in client.get("charges", [])]
        table.add_row(name, *client_cells(client, charges), rounded_up(client["epsilon"], 4))
    return table


def phases_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the seconds spent in each phase, summed over all rounds."""
    table = Table(title="Time by phase")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for key, phase in PHASES.items():
        table.add_row(phase, f"{sum(row[key] for row in rows):.2f}")
    return table
