"""``fedsvd privacy``: what a run will cost, and what has been spent."""

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

_USAGE = "fedsvd privacy plan [KEY=VALUE …], or fedsvd privacy ledger PATH [target_delta=… accountant=…]"


def run(words: Sequence[str]) -> None:
    """Plan a run, or show a ledger.

    Raises:
        ConfigError: Words that are not understood, or a configuration that is not allowed.
        LedgerError: A ledger that is missing, damaged, no ledger, or about other data than the plan.
        PrivacyError: A budget that no noise can keep.
    """
    if words and words[0] == "plan":
        _plan(words[1:])
    elif len(words) > 1 and words[0] == "ledger":
        _show(Path(words[1]), words[2:])
    else:
        raise ConfigError(f"fedsvd privacy {' '.join(words)}".rstrip() + f" is not understood; write {_USAGE}.")


def _plan(words: Sequence[str]) -> None:
    config = _resumable(words)
    privacy = config.privacy
    if privacy.name == "none":
        raise ConfigError("privacy = none gives no guarantee to plan; take privacy=dp_sgd or privacy=client_level.")
    # Imported late: it loads torch and transformers, which a wrong key should not have to wait for.
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
    rounds = f"{config.train.num_rounds} rounds" + (f", {done} of them done" if done else "")
    console.print(
        f"{rounds}; ε of the run ≤ {privacy.target_epsilon:g}, in all ≤ {budget.max_epsilon:g}, at δ = "
        f"{privacy.target_delta:g}, counted by {privacy.accountant}; {bound} = {getattr(privacy, bound):g}",
        highlight=False,
        soft_wrap=True,
    )
    if not (privacy.ledger_dir or config.resume):
        console.print(
            "No ledger is known: privacy.ledger_dir or resume would name one. A real client's own ledger and limits "
            "are known to its node alone.",
            soft_wrap=True,
        )
    for warning in plan_warnings(config, plans):
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False, soft_wrap=True)


def _resumable(words: Sequence[str]) -> Config:
    config = compose(list(words))
    if config.resume is None:
        return config
    from fedsvd.launch import saved_overrides

    return compose([*saved_overrides(Path(config.resume)), *words])


def _history(config: Config, partition_id: int, fingerprint: str) -> list[Spend]:
    """Return what a client's ledger holds; nothing where the client has not started one."""
    if not (config.privacy.ledger_dir or config.resume):
        return []
    path = ledger_path(config.privacy.ledger_dir, Path(config.resume or ""), partition_id)
    if not path.exists():
        return []
    with Ledger.read(path) as ledger:
        if ledger.fingerprint != fingerprint:
            raise LedgerError(
                f"the privacy ledger {path} keeps the account of other data than client {partition_id} would hold; "
                "choose another privacy.ledger_dir, or the data, seed and partition that it was kept for."
            )
        return ledger.history()


def _rounds_done(resume: str | None) -> int:
    """Return the last round whose checkpoint is whole; a checkpoint gets its name when it is."""
    done = 0
    if resume is not None:
        for path in RunFolder(Path(resume)).checkpoints.glob("round-*"):
            with suppress(ValueError):
                done = max(done, int(path.name.removeprefix("round-")))
    return done


def _show(path: Path, words: Sequence[str]) -> None:
    with Ledger.read(path) as ledger:
        entries, fingerprint = ledger.entries(), ledger.fingerprint
    console = Console()
    console.print(f"[bold]{path}[/bold]  data {fingerprint[:12]}…", highlight=False, soft_wrap=True)
    if not entries:
        console.print("nothing has been spent")
        return
    target_delta, accountant = _terms(words, entries[-1])
    console.print(charges_table(entries))
    console.print(runs_table(_totals(entries, target_delta, accountant), target_delta, accountant))
    last = entries[-1].budget
    console.print(
        f"allowed when last asked: ε ≤ {last.max_epsilon:g} in all at δ = {last.max_delta:g}, ε ≤ "
        f"{last.target_epsilon:g} for the run at δ = {last.target_delta:g}",
        highlight=False,
        soft_wrap=True,
    )


def _terms(words: Sequence[str], last: Entry) -> tuple[float, str]:
    """Return δ and the accountant: those that are asked for, or else those of the last charge."""
    given = dict(word.partition("=")[::2] for word in words)
    unknown = sorted(given.keys() - {"target_delta", "accountant"})
    if unknown:
        raise ConfigError(f"{unknown[0]} means nothing to fedsvd privacy ledger; write {_USAGE}.")
    try:
        target_delta = float(given.get("target_delta", last.budget.max_delta))
    except ValueError as error:
        raise ConfigError(
            f"target_delta = {given['target_delta']!r} is no number; give one above 0, below 1."
        ) from error
    return target_delta, given.get("accountant", last.budget.accountant)


def _totals(entries: Sequence[Entry], target_delta: float, accountant: str) -> list[RunTotal]:
    totals = []
    runs = list(dict.fromkeys(entry.run_id for entry in entries))
    for run_id in runs:
        own = [entry for entry in entries if entry.run_id == run_id]
        # Two runs at once interleave: what counts is all that had been charged when this one last was.
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
