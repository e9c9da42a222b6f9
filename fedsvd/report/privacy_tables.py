"""Tables of the privacy cost that is planned for a run, and of the charges in a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from fedsvd.config import Config
from fedsvd.privacy.ledger import Entry, Event
from fedsvd.privacy.plan import ClientPlan
from fedsvd.privacy.rounding import rounded_up
from fedsvd.privacy.sampling import SampleRateCost
from fedsvd.report.literal import add_literal_row

# More clients would not fit a terminal.
_MAX_CLIENTS = 6
# A number that is not known here.
_UNKNOWN = "–"


@dataclass(frozen=True)
class RunTotal:
    """Total of one run's charges in a ledger.

    Attributes:
        run_id: Flower's run ID.
        rounds: Number of rounds that were charged at least once.
        steps: Number of noisy steps charged.
        epsilon: ε of this run's charges alone.
        epsilon_after: ε of all charges of the same account up to this run's last one.
        account: Number of the account that was charged.
    """

    run_id: str
    rounds: int
    steps: int
    epsilon: float
    epsilon_after: float
    account: int = 1


def plan_table(plans: Mapping[int, ClientPlan], target_delta: float, unit: str) -> Table:
    """Return a table with one row per client: its mechanism and the planned privacy cost.

    Args:
        plans: Plans of the clients, by number.
        target_delta: δ at which ε is reported.
        unit: Unit of protection, ``example`` or ``client``.
    """
    table = Table(title=f"Planned privacy cost per {unit} at δ = {target_delta:g}")
    for heading in (
        "client",
        "examples",
        "sample\nrate",
        "noise\nmultiplier",
        "max\nsteps",
        "ε of\nthis run",
        "ε spent\nbefore",
        "ε\ntotal",
    ):
        table.add_column(heading, justify="right")
    for number, plan in plans.items():
        table.add_row(
            str(number),
            _UNKNOWN if plan.num_examples is None else str(plan.num_examples),
            f"{plan.run.sample_rate:.4f}",
            f"{plan.run.noise_multiplier:.3f}",
            str(plan.run.steps),
            rounded_up(plan.epsilon_run, 3),
            rounded_up(plan.epsilon_before, 3),
            rounded_up(plan.epsilon_after, 3),
            style="yellow" if plan.affordable_rounds < plan.remaining_rounds else "",
        )
    return table


def sample_rates_table(costs: Sequence[SampleRateCost], plans: Mapping[int, ClientPlan], config: Config) -> Table:
    """Return a table with one row per sample rate: its noise, each client's expected batch, and who has it now.

    At a fixed noise multiplier, it has the ε of each sample rate in place of the noise multiplier.
    """
    privacy, steps = config.privacy, next(iter(plans.values())).run.steps
    what, heading = f"Noise by sample rate, for ε = {privacy.target_epsilon:g}", "noise\nmultiplier"
    if privacy.noise_multiplier is not None:
        what, heading = f"ε by sample rate, for σ = {privacy.noise_multiplier:g}", "ε of\nthis run"
    table = Table(title=f"{what} at δ = {privacy.target_delta:g} and {steps} steps")
    shown = list(plans)[:_MAX_CLIENTS]
    names = ", ".join(map(str, shown)) + (", …" if len(plans) > len(shown) else "")
    clients = f"client {names}" if len(plans) == 1 else f"clients {names}"
    for column in ("sample\nrate", heading, "noise of a step\n(all examples: 1)", f"batch of\n{clients}", "now"):
        table.add_column(column, justify="right")
    for cost in costs:
        sizes = ", ".join(_batch(cost.sample_rate, plans[number].num_examples) for number in shown)
        now = ", ".join(map(str, cost.clients[:_MAX_CLIENTS])) + (", …" if len(cost.clients) > _MAX_CLIENTS else "")
        value = f"{cost.noise_multiplier:.3f}" if cost.epsilon is None else rounded_up(cost.epsilon, 3)
        row = [f"{cost.sample_rate:.4f}", value, f"{cost.relative_noise:.2f}", sizes, now]
        table.add_row(*row, style="bold" if cost.clients else "")
    return table


def _batch(sample_rate: float, num_examples: int | None) -> str:
    """Return an expected batch size."""
    return _UNKNOWN if num_examples is None else f"{sample_rate * num_examples:.0f}"


def charges_table(entries: Sequence[Entry]) -> Table:
    """Return a table with one row per charge, oldest first; runs are numbered as in `runs_table`."""
    table = Table(title="Charges")
    has_accounts = any(entry.account > 1 for entry in entries)
    headings = ("run", "round", "steps", "noise\nmultiplier", "sample\nrate", "charged (UTC)", "result\nsent")
    for heading in (*["account"] * has_accounts, *headings):
        table.add_column(heading, justify="right")
    runs = list(dict.fromkeys((entry.account, entry.run_id) for entry in entries))
    for entry in entries:
        cells = (
            1 + runs.index((entry.account, entry.run_id)),
            entry.server_round,
            entry.spend.steps,
            f"{entry.spend.noise_multiplier:.3f}",
            f"{entry.spend.sample_rate:.4f}",
            _utc(entry.reserved_at),
            "no" if entry.released_at is None else "yes",
        )
        add_literal_row(table, (*[entry.account] * has_accounts, *cells))
    return table


def event_lines(events: Sequence[Event]) -> list[str]:
    """Return a line for each change of the data and each new account, oldest first."""
    lines, is_bound = [], True
    for event in events:
        if event.kind == "account":
            text = f"account {event.account} opened: no earlier charge counts against it; reason: {event.reason}"
        elif is_bound:
            text = (
                f"data changed from {event.old_fingerprint[:12]}… to {event.new_fingerprint[:12]}…: all earlier "
                f"charges of account {event.account} count against the new data"
            )
        else:
            text = f"account {event.account} bound to data {event.new_fingerprint[:12]}…"
        is_bound = event.kind != "account"
        lines.append(f"{_utc(event.recorded_at)}  after charge {event.charges_before}: {text}")
    return lines


def runs_table(runs: Sequence[RunTotal], target_delta: float, accountant: str) -> Table:
    """Return a table with one row per run: its own privacy cost, and the account's total when it was last charged."""
    table = Table(title=f"ε spent at δ = {target_delta:g}, {accountant} accountant")
    has_accounts = any(run.account > 1 for run in runs)
    headings = ("run", "run ID", "rounds", "steps", "ε of\nthis run", "ε total\nafterwards")
    for heading in (*["account"] * has_accounts, *headings):
        table.add_column(heading, justify="right", no_wrap=heading == "run ID")
    for number, run in enumerate(runs, 1):
        epsilons = (rounded_up(run.epsilon, 4), rounded_up(run.epsilon_after, 4))
        cells = (number, run.run_id, run.rounds, run.steps, *epsilons)
        add_literal_row(table, (*[run.account] * has_accounts, *cells))
    return table


def _utc(time: str) -> str:
    return time.removesuffix("+00:00").replace("T", " ")
