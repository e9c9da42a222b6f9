"""Tables of what a run will cost its clients, and of what a ledger holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fedsvd.privacy.ledger import Entry
from fedsvd.privacy.plan import ClientPlan
from fedsvd.report.tables import rounded_up


@dataclass(frozen=True)
class RunTotal:
    """One run's part in a ledger.

    Attributes:
        run_id: Flower's number of the run.
        rounds: Rounds that were charged at least once.
        steps: Noisy steps charged.
        epsilon: ε of this run's charges alone.
        epsilon_after: ε of the whole ledger up to this run's last charge.
    """

    run_id: str
    rounds: int
    steps: int
    epsilon: float
    epsilon_after: float


def plan_table(plans: Sequence[ClientPlan], target_delta: float, unit: str) -> Table:
    """A row a client: its mechanism, and what the run will cost it."""
    table = Table(title=f"what the run will cost, per {unit}, at δ = {target_delta:g}")
    for heading in (
        "client",
        "examples",
        "sample\nrate",
        "noise\nmultiplier",
        "steps\nat\nmost",
        "ε of\nthe run",
        "ε\nbefore",
        "ε\nin all",
    ):
        table.add_column(heading, justify="right")
    for number, plan in enumerate(plans):
        table.add_row(
            str(number),
            str(plan.num_examples),
            f"{plan.run.sample_rate:.4f}",
            f"{plan.run.noise_multiplier:.3f}",
            str(plan.run.steps),
            rounded_up(plan.epsilon_run, 3),
            rounded_up(plan.epsilon_before, 3),
            rounded_up(plan.epsilon_after, 3),
            style="yellow" if plan.affordable_rounds < plan.remaining_rounds else "",
        )
    return table


def charges_table(entries: Sequence[Entry]) -> Table:
    """A row a charge, oldest first; runs are numbered as in `runs_table`."""
    table = Table(title="charges")
    for heading in ("run", "round", "steps", "noise\nmultiplier", "sample\nrate", "charged (UTC)", "result\nleft"):
        table.add_column(heading, justify="right")
    runs = list(dict.fromkeys(entry.run_id for entry in entries))
    for entry in entries:
        table.add_row(
            str(1 + runs.index(entry.run_id)),
            str(entry.server_round),
            str(entry.spend.steps),
            f"{entry.spend.noise_multiplier:.3f}",
            f"{entry.spend.sample_rate:.4f}",
            entry.reserved_at.removesuffix("+00:00"),
            "no" if entry.released_at is None else "yes",
        )
    return table


def runs_table(runs: Sequence[RunTotal], target_delta: float, accountant: str) -> Table:
    """A row a run: what it cost alone, and what all had cost when it was last charged."""
    table = Table(title=f"ε spent at δ = {target_delta:g}, counted by {accountant}")
    for heading in ("run", "run id", "rounds", "steps", "ε of\nthe run", "ε in all\nafter it"):
        table.add_column(heading, justify="right", no_wrap=heading == "run id")
    for number, run in enumerate(runs, 1):
        table.add_row(
            str(number),
            run.run_id,
            str(run.rounds),
            str(run.steps),
            rounded_up(run.epsilon, 4),
            rounded_up(run.epsilon_after, 4),
        )
    return table
