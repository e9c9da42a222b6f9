"""``fedsvd privacy ledger``: show a ledger, or open a new account in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from fedsvd.errors import ConfigError
from fedsvd.privacy.accounting import check_accountant, check_delta, epsilon
from fedsvd.privacy.ledger import Entry, Ledger, LedgerState
from fedsvd.privacy.ledger_accounts import open_account
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.literal import literal
from fedsvd.report.privacy_tables import RunTotal, charges_table, event_lines, runs_table

USAGE = 'fedsvd privacy ledger PATH [target_delta=… accountant=…] [--new-account "REASON"]'
_OPTION = "--new-account"
# δ and the accountant of the arguments; None where the last charge determines them.
_Options = tuple[float | None, str | None]


def run(arguments: Sequence[str]) -> None:
    """Show a ledger, after opening a new account if asked to.

    Raises:
        ConfigError: The arguments are invalid.
        LedgerError: The ledger is missing, damaged or not a ledger, or cannot have a new account.
        PrivacyError: δ or the accountant is invalid.
    """
    path, rest, reason = _parse(arguments)
    options = _accounting_options(rest)
    console = Console()
    if reason is not None:
        # An account cannot be closed again, so whatever would end the command is found before it is opened.
        account = open_account(path, reason, partial(_check_options, options))
        console.print(
            f"opened account {account}, for data of other people than those of all earlier charges; the next charge "
            "binds it to its data. Earlier charges stay in the ledger.",
            highlight=False,
            soft_wrap=True,
        )
    _show(path, options, console)


def _parse(arguments: Sequence[str]) -> tuple[Path, list[str], str | None]:
    rest, reason = list(arguments), None
    for index, argument in enumerate(arguments):
        if argument == _OPTION or argument.startswith(f"{_OPTION}="):
            value = argument.partition("=")[2] if "=" in argument else "".join(arguments[index + 1 : index + 2])
            reason = value.strip()
            del rest[index : index + (1 if "=" in argument else 2)]
            break
    if not rest or (reason is not None and not _is_reason(reason)):
        raise ConfigError(
            f"fedsvd privacy ledger needs the path of a ledger, and {_OPTION} a reason for the record. Usage: {USAGE}"
        )
    return Path(rest[0]), rest[1:], reason


def _is_reason(reason: str) -> bool:
    # Bytes that are not UTF-8 arrive as surrogates, which SQLite cannot store.
    encodable = reason.encode("utf-8", "ignore").decode() == reason
    return bool(reason) and encodable and not reason.startswith(("--", "target_delta=", "accountant="))


def _check_options(options: _Options, state: LedgerState) -> None:
    """Raise `PrivacyError` if the ε of a charge cannot be computed."""
    if state.entries:
        _run_totals(state.entries, *_accounting(options, state.entries[-1]))


def _show(path: Path, options: _Options, console: Console) -> None:
    with Ledger.read(path) as ledger:
        state = ledger.state()
    data = f"data {state.fingerprint[:12]}…" if state.is_bound else "not bound to data yet"
    console.print(literal(path, "bold"), f" {data}", highlight=False, soft_wrap=True)
    for line in event_lines(state.events):
        console.print(literal(f"  {line}"), soft_wrap=True)
    if not state.entries:
        console.print("no privacy has been spent")
        return
    last = state.entries[-1]
    target_delta, accountant = _accounting(options, last)
    console.print(charges_table(state.entries))
    console.print(runs_table(_run_totals(state.entries, target_delta, accountant), target_delta, accountant))
    lines = (_summary(state, target_delta, accountant), _budget(last))
    for line in lines:
        console.print(literal(line), soft_wrap=True)


def _summary(state: LedgerState, target_delta: float, accountant: str) -> str:
    """Say which charges count against the present data, and their ε."""
    counting = state.counting
    spent = epsilon([entry.spend for entry in counting], target_delta, accountant)
    line = f"what counts against the present data: {_charges(len(counting))} of account {state.account}"
    on_other_data = sum(entry.fingerprint != state.fingerprint for entry in counting)
    if on_other_data:
        line += f", {on_other_data} of them made on earlier data"
    line += f"; ε = {rounded_up(spent, 3)} at δ = {target_delta:g}"
    earlier = len(state.entries) - len(counting)
    return line + (f". {_charges(earlier)} of earlier accounts, on data of other people: not counted" * bool(earlier))


def _charges(count: int) -> str:
    return f"{count} charge" + "s" * (count != 1)


def _budget(last: Entry) -> str:
    return (
        f"budget at the last charge: ε ≤ {last.budget.max_epsilon:g} in total at δ = {last.budget.max_delta:g}, ε ≤ "
        f"{last.budget.target_epsilon:g} for the run at δ = {last.budget.target_delta:g}"
    )


def _accounting(options: _Options, last: Entry) -> tuple[float, str]:
    """Return δ and the accountant that the charges are shown with."""
    return options[0] or last.budget.max_delta, options[1] or last.budget.accountant


def _accounting_options(arguments: Sequence[str]) -> _Options:
    """Return δ and the accountant from the arguments, each valid by itself."""
    options = dict(item.partition("=")[::2] for item in arguments)
    unknown = sorted(options.keys() - {"target_delta", "accountant"})
    if unknown:
        raise ConfigError(f"fedsvd privacy ledger does not accept {unknown[0]}. Usage: {USAGE}")
    target_delta, accountant = options.get("target_delta"), options.get("accountant")
    if accountant is not None:
        check_accountant(accountant)
    if target_delta is None:
        return None, accountant
    try:
        delta = float(target_delta)
    except ValueError as error:
        raise ConfigError(f"target_delta = {target_delta!r} is invalid: expected a number > 0 and < 1.") from error
    check_delta(delta, accountant or "rdp")
    return delta, accountant


def _run_totals(entries: Sequence[Entry], target_delta: float, accountant: str) -> list[RunTotal]:
    totals = []
    for account, run_id in dict.fromkeys((entry.account, entry.run_id) for entry in entries):
        in_account = [entry for entry in entries if entry.account == account]
        own = [entry for entry in in_account if entry.run_id == run_id]
        # Charges of concurrent runs interleave: the total includes all charges up to this run's last one.
        before = in_account[: in_account.index(own[-1]) + 1]
        totals.append(
            RunTotal(
                run_id,
                len({entry.server_round for entry in own}),
                sum(entry.spend.steps for entry in own),
                epsilon([entry.spend for entry in own], target_delta, accountant),
                epsilon([entry.spend for entry in before], target_delta, accountant),
                account,
            )
        )
    return totals
