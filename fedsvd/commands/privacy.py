"""``fedsvd privacy``: show the privacy cost of a planned run, or the privacy spent according to a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, LedgerError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Entry, Ledger
from fedsvd.privacy.plan import configured_budget, plan_client, plan_warnings
from fedsvd.report.privacy_tables import RunTotal, charges_table, plan_table, runs_table
from fedsvd.runs.folder import RunFolder, ledger_path

_USAGE = "fedsvd privacy plan [KEY=VALUE …] | fedsvd privacy ledger PATH [target_delta=… accountant=…]"


def run(arguments: Sequence[str]) -> None:
    """Plan a run, or show a ledger.

    Raises:
        ConfigError: The arguments or the configuration are invalid.
        LedgerError: The ledger is missing, damaged, not a ledger, or belongs to other data than the plan.
        PrivacyError: No amount of noise satisfies the budget.
    """
    if arguments and arguments[0] == "plan":
        _plan(arguments[1:])
    elif len(arguments) > 1 and arguments[0] == "ledger":
        _show_ledger(Path(arguments[1]), arguments[2:])
    else:
        raise ConfigError(
            "invalid arguments: " + f"fedsvd privacy {' '.join(arguments)}".rstrip() + f". Usage: {_USAGE}"
        )


def _plan(overrides: Sequence[str]) -> None:
    config = _compose_resumable(overrides)
    privacy = config.privacy
    if privacy.name == "none":
        raise ConfigError("privacy = none gives no guarantee to plan; set privacy=dp_sgd or privacy=client_level.")
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd import data
    from fedsvd.runtime.data import load_partition

    numbers = range(config.federation.num_clients)
    parts = [load_partition(config, number) for number in numbers]
    histories = [_history(config, number, data.fingerprint(part)) for number, part in zip(numbers, parts, strict=True)]
    done = _rounds_done(config.resume)
    plans = [plan_client(config, len(part), h, done) for part, h in zip(parts, histories, strict=True)]
    budget, console = configured_budget(privacy), Console()
    unit, bound = ("example", "max_grad_norm") if privacy.name == "dp_sgd" else ("client", "max_update_norm")
    console.print(plan_table(plans, budget.target_delta, unit))
    rounds = f"{config.train.num_rounds} rounds" + (f", {done} already done" if done else "")
    console.print(
        f"{rounds}; budget: ε ≤ {privacy.target_epsilon:g} for this run and ε ≤ {budget.max_epsilon:g} in total, at "
        f"δ = {privacy.target_delta:g}, {privacy.accountant} accountant; {bound} = {getattr(privacy, bound):g}",
        highlight=False,
        soft_wrap=True,
    )
    if not (privacy.ledger_dir or config.resume):
        console.print(
            "No ledgers are taken into account; set privacy.ledger_dir or resume to include them. The ledger and "
            "limits of a real client are known only to its node.",
            soft_wrap=True,
        )
    for warning in plan_warnings(config, plans):
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False, soft_wrap=True)


def _compose_resumable(overrides: Sequence[str]) -> Config:
    """Compose the configuration; with ``resume``, on top of the overrides of the run to resume."""
    config = compose(list(overrides))
    if config.resume is None:
        return config
    from fedsvd.launch import saved_overrides

    return compose([*saved_overrides(Path(config.resume)), *overrides])


def _history(config: Config, partition_id: int, fingerprint: str) -> list[Spend]:
    """Return the spends in a client's ledger; empty if the client has no ledger yet."""
    if not (config.privacy.ledger_dir or config.resume):
        return []
    path = ledger_path(config.privacy.ledger_dir, Path(config.resume or ""), partition_id)
    if not path.exists():
        return []
    with Ledger.read(path) as ledger:
        if ledger.fingerprint != fingerprint:
            raise LedgerError(
                f"the privacy ledger {path} belongs to other data than client {partition_id} would hold in this run; "
                "set another privacy.ledger_dir, or the data, seed and partition that the ledger was created for."
            )
        return ledger.history()


def _rounds_done(resume: str | None) -> int:
    """Return the last round with a complete checkpoint; a checkpoint gets its final name once it is complete."""
    done = 0
    if resume is not None:
        for path in RunFolder(Path(resume)).checkpoints.glob("round-*"):
            with suppress(ValueError):
                done = max(done, int(path.name.removeprefix("round-")))
    return done


def _show_ledger(path: Path, arguments: Sequence[str]) -> None:
    with Ledger.read(path) as ledger:
        entries, fingerprint = ledger.entries(), ledger.fingerprint
    console = Console()
    console.print(f"[bold]{path}[/bold]  data {fingerprint[:12]}…", highlight=False, soft_wrap=True)
    if not entries:
        console.print("no privacy has been spent")
        return
    target_delta, accountant = _accounting_options(arguments, entries[-1])
    console.print(charges_table(entries))
    console.print(runs_table(_run_totals(entries, target_delta, accountant), target_delta, accountant))
    last = entries[-1].budget
    console.print(
        f"budget at the last charge: ε ≤ {last.max_epsilon:g} in total at δ = {last.max_delta:g}, ε ≤ "
        f"{last.target_epsilon:g} for the run at δ = {last.target_delta:g}",
        highlight=False,
        soft_wrap=True,
    )


def _accounting_options(arguments: Sequence[str], last: Entry) -> tuple[float, str]:
    """Return δ and the accountant from the arguments; the defaults are those of the last charge."""
    given = dict(item.partition("=")[::2] for item in arguments)
    unknown = sorted(given.keys() - {"target_delta", "accountant"})
    if unknown:
        raise ConfigError(f"fedsvd privacy ledger does not accept {unknown[0]}. Usage: {_USAGE}")
    try:
        target_delta = float(given.get("target_delta", last.budget.max_delta))
    except ValueError as error:
        raise ConfigError(
            f"target_delta = {given['target_delta']!r} is invalid: expected a number > 0 and < 1."
        ) from error
    return target_delta, given.get("accountant", last.budget.accountant)


def _run_totals(entries: Sequence[Entry], target_delta: float, accountant: str) -> list[RunTotal]:
    totals = []
    runs = list(dict.fromkeys(entry.run_id for entry in entries))
    for run_id in runs:
        own = [entry for entry in entries if entry.run_id == run_id]
        # Charges of concurrent runs interleave: the total includes all charges up to this run's last one.
        before = entries[: entries.index(own[-1]) + 1]
        totals.append(
            RunTotal(
                run_id,
                len({entry.server_round for entry in own}),
                sum(entry.spend.steps for entry in own),
                epsilon([entry.spend for entry in own], target_delta, accountant),
                epsilon([entry.spend for entry in before], target_delta, accountant),
            )
        )
    return totals
