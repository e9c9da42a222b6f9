"""Checks before a charge: whether the ledger may be charged for this data, and whether the budget covers the charge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import BudgetExceededError, LedgerError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger_entries import Budget, Entry, LedgerState
from fedsvd.privacy.rounding import rounded_up


def check_data(state: LedgerState, path: Path, fingerprint: str, strict: bool) -> bool:
    """Check whether the current account may be charged for the data that ``fingerprint`` identifies.

    Returns:
        Whether the data have changed since the last charge.

    Raises:
        LedgerError: As for `fedsvd.privacy.ledger.Ledger.check_data`.
    """
    if state.has_earlier_account_of(fingerprint):
        raise LedgerError(
            f"the privacy ledger {path} was charged for this data in an earlier account, and its current account "
            f"{state.account} is for data of other people. Use the data that the account was opened for."
        )
    has_changed = state.is_bound and state.fingerprint != fingerprint
    if has_changed and strict:
        error = LedgerError(
            f"the privacy ledger {path} belongs to other data, and its policy is strict. Use a separate ledger for "
            'this data, or ledger-policy="continue" to count all earlier charges against it.'
        )
        # A digest without a salt confirms guesses of the data. Notes are not in the reply of a client.
        error.add_note(f"The ledger's fingerprint is {state.fingerprint[:12]}…, that of this data {fingerprint[:12]}….")
        raise error
    return has_changed


def check_budget(counting: Sequence[Entry], run_id: str, spend: Spend, budget: Budget, fingerprint: str) -> None:
    """Check whether the budget covers a charge.

    Args:
        counting: The charges of the current account.
        run_id: The run that is charged.
        spend: The new charge.
        budget: What the client allows.
        fingerprint: Fingerprint of the data.

    Raises:
        BudgetExceededError: The run or the account would exceed the budget.
    """
    this_run = [entry.spend for entry in counting if entry.run_id == run_id]
    _check_limit(this_run, spend, budget.target_epsilon, budget.target_delta, budget.accountant, "this run")
    history = [entry.spend for entry in counting]
    on_other_data = sum(entry.fingerprint != fingerprint for entry in counting)
    remedy = (
        f" {on_other_data} of the {len(counting)} earlier charges were made on other data. If no person is in both, "
        'the owner of the ledger can start a new account: fedsvd privacy ledger PATH --new-account "reason".'
    )
    _check_limit(
        history,
        spend,
        budget.max_epsilon,
        budget.max_delta,
        budget.accountant,
        "all charges",
        remedy if on_other_data else "",
    )


def _check_limit(
    history: Sequence[Spend],
    spend: Spend,
    limit: float,
    target_delta: float,
    accountant: str,
    scope: str,
    remedy: str = "",
) -> None:
    after = epsilon([*history, spend], target_delta, accountant)
    if after > limit:
        before = epsilon(history, target_delta, accountant)
        raise BudgetExceededError(
            f"{spend.steps} more steps with noise multiplier {spend.noise_multiplier:.4g} at sample rate "
            f"{spend.sample_rate:.4g} would raise the ε of {scope} from {rounded_up(before, 3)} to "
            f"{rounded_up(after, 3)} at δ = {target_delta:g}; this client allows {limit:g}.{remedy}"
        )
