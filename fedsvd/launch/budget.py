"""What the ledgers of simulated clients leave for the remaining rounds of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsvd.config import Config
from fedsvd.errors import BudgetExceededError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import ClientPlan, configured_budget, plan_client, run_limit_note
from fedsvd.privacy.recorded_charges import recorded_charges
from fedsvd.privacy.rounding import rounded_up
from fedsvd.runs.folder import RunFolder, ledger_path, read_rows_if_any
from fedsvd.runs.ownership import completed_rounds
from fedsvd.runtime.data import load_fingerprint, load_partition


@dataclass(frozen=True)
class PlannedRun:
    """The planned privacy cost of a run, with its ledgers and the rounds that an earlier process completed.

    Attributes:
        clients: The plan of each client that takes part, by its number.
        rounds_done: Number of rounds that are done.
        changed: Numbers of the clients whose ledgers were last charged for other data.
    """

    clients: Mapping[int, ClientPlan]
    rounds_done: int
    changed: Sequence[int]


def plan_run(config: Config) -> PlannedRun:
    """Plan a run; clients that do not take part are left out.

    Real nodes with their own data are planned without their numbers of examples and their ledgers, which only they
    know, and for all rounds of the run.

    Raises:
        LedgerError: A ledger is damaged, not a ledger, or cannot be charged for the client's data.
        PrivacyError: No amount of noise satisfies the budget, or the cost depends on nodes' numbers of examples.
    """
    if config.data.name == "node":
        plan = plan_client(config, None, [])
        return PlannedRun(dict.fromkeys(config.federation.participating, plan), 0, [])
    done = (completed_rounds(Path(config.resume)) or 0) if config.resume else 0
    plans, changed = {}, []
    for number in config.federation.participating:
        part = load_partition(config, number)
        history = _history(config, number, load_fingerprint(config, number))
        plans[number] = plan_client(
            config,
            len(part),
            history.counting,
            done,
            is_charged=history.is_charged,
            of_run=history.of_run,
            done=_charged_by_run(config, number, history),
        )
        changed += [number] if history.has_changed else []
    return PlannedRun(plans, done, changed)


def check_remaining_budget(config: Config) -> list[str]:
    """Check the ledgers of the simulated clients before a run is resumed.

    Returns:
        Warnings about clients whose budget holds only a part of the remaining rounds.

    Raises:
        BudgetExceededError: No client's budget holds another round. A run with client-level privacy and shared noise,
            whose server skips such rounds, only has warnings.
        LedgerError: A ledger is damaged.
    """
    if config.resume is None or config.privacy.name == "none" or config.data.name == "node":
        return []
    # Real clients keep their ledgers on their own machines.
    ledgers = [
        ledger_path(config.privacy.ledger_dir, Path(config.resume), number)
        for number in config.federation.participating
    ]
    if not any(path.exists() for path in ledgers):
        return []
    plans, budget = plan_run(config).clients, configured_budget(config.privacy)
    remaining = next(iter(plans.values())).remaining_rounds
    # With shared noise, no larger budget continues the run. The server skips its last rounds and writes the model.
    ends_by_itself = config.privacy.name == "client_level" and config.privacy.noise_share
    if remaining > 0 and not ends_by_itself and not any(plan.affordable_rounds for plan in plans.values()):
        spent = max(plan.epsilon_before for plan in plans.values())
        remedy = "Raise privacy.max_epsilon, or use the model as it is."
        if any(plan.run_limit for plan in plans.values()):
            remedy = (
                f"One round alone would exceed privacy.target_epsilon = {budget.target_epsilon:g}, the limit of a run. "
                "Use the model as it is."
            )
        raise BudgetExceededError(
            f"resume = {config.resume!r} cannot continue: no client's budget holds one of the {remaining} remaining "
            f"rounds (up to ε = {rounded_up(spent, 2)} of {budget.max_epsilon:g} is spent, at δ = "
            f"{budget.max_delta:g}). {remedy}"
        )
    return [
        f"client {number}: its budget holds {plan.affordable_rounds} of the {remaining} remaining rounds; it will "
        f"decline the others.{run_limit_note(plan)}"
        for number, plan in plans.items()
        if plan.affordable_rounds < remaining
    ]


@dataclass(frozen=True)
class _History:
    """What a client's ledger holds; nothing if it has none yet.

    Attributes:
        counting: The spends that count against the client's data.
        has_changed: Whether some were on other data.
        of_run: Those of this run, in all its processes, with client-level privacy.
        is_charged: Whether one of them is that of all rounds of this run.
    """

    counting: Sequence[Spend] = ()
    has_changed: bool = False
    of_run: Sequence[Spend] = ()
    is_charged: bool = False


def _history(config: Config, partition_id: int, fingerprint: str) -> _History:
    if not (config.privacy.ledger_dir or config.resume):
        return _History()
    path = ledger_path(config.privacy.ledger_dir, Path(config.resume or ""), partition_id)
    if not path.exists():
        return _History()
    with Ledger.read(path) as ledger:
        has_changed = ledger.check_data(fingerprint)
        charges = ledger.state().counting
    account = RunFolder(Path(config.resume)).account if config.resume else None
    run = account.read_text(encoding="utf-8") if account and account.exists() else None
    of_run = [entry for entry in charges if entry.run_id == run]
    return _History(
        [entry.spend for entry in charges],
        has_changed and bool(charges),
        [entry.spend for entry in of_run],
        any(not entry.server_round for entry in of_run),
    )


def _charged_by_run(config: Config, partition_id: int, history: _History) -> Sequence[Spend]:
    """Return the spends of a resumed run's rounds: at least these, and all where they cannot be told from others."""
    if config.resume is None or config.privacy.name == "client_level":
        return history.of_run
    if config.privacy.ledger_dir is None:
        # The ledger is part of the run directory.
        return history.counting
    rows = [row for row in read_rows_if_any(RunFolder(Path(config.resume)).metrics) if row["server_round"]]
    return recorded_charges(rows).get(str(partition_id)) or history.counting
