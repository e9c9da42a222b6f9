"""Charges to the client's ledger: on disk before training, and marked as released before the result is sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from client.identity import ClientIdentity
from fedsvd.config import Config
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import calibrate_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Charge:
    """A charge, and the state of the ledger after it.

    Attributes:
        spend: What was charged: the steps of one round or of the whole run.
        epsilon: ε of all charges of the ledger's current account at the run's δ.
        steps: Noisy steps of all these charges.
    """

    spend: Spend
    epsilon: float
    steps: int


def charge_round(
    config: Config, identity: ClientIdentity, fingerprint: str, num_examples: int, server_round: int, message_id: str
) -> Charge:
    """Charge one round of DP-SGD; the charge is on disk when this returns.

    Raises:
        LimitError: If the noise multiplier is below this client's minimum.
        ReplayedMessageError: If the message was charged before.
        BudgetExceededError: If the round would exceed the budget.
        LedgerError: If the ledger is invalid or cannot be written.
    """
    run = calibrate_run(config, num_examples)
    identity.limits.check_noise(run)
    spend = Spend(run.noise_multiplier, run.sample_rate, config.train.local_steps)
    with _open(identity, fingerprint) as ledger:
        budget = identity.limits.budget(config.privacy)
        has_changed = ledger.check_data(fingerprint, strict=identity.strict_ledger)
        epsilon = ledger.reserve(str(identity.run_id), server_round, message_id, spend, budget)
        _log_change(ledger, has_changed)
        return Charge(spend, epsilon, sum(entry.steps for entry in ledger.history()))


def mark_released(identity: ClientIdentity, fingerprint: str, message_id: str) -> None:
    """Record that the result of a charged round is about to be sent.

    Raises:
        LedgerError: If it must not be sent.
    """
    with _open(identity, fingerprint) as ledger:
        ledger.mark_released(message_id)


def charge_whole_run(config: Config, identity: ClientIdentity, fingerprint: str, account: str) -> Charge:
    """Charge all rounds of a client-level private run at once, when ``account`` is first used.

    Raises:
        BudgetExceededError: If the run would exceed the budget.
        LedgerError: If the ledger is invalid or cannot be written, or the account was opened for another mechanism.
    """
    with _open(identity, fingerprint) as ledger:
        run = calibrate_run(config, 1)
        has_changed = ledger.check_data(fingerprint, strict=identity.strict_ledger)
        epsilon = ledger.reserve_run(account, run, identity.limits.budget(config.privacy))
        _log_change(ledger, has_changed)
        return Charge(run, epsilon, sum(entry.steps for entry in ledger.history()))


def _open(identity: ClientIdentity, fingerprint: str) -> Ledger:
    return Ledger.open(identity.ledger, fingerprint, strict=identity.strict_ledger)


def _log_change(ledger: Ledger, has_changed: bool) -> None:
    """Tell the node's owner, in the node's log only, that earlier charges count against other data."""
    state = ledger.state()
    on_other_data = sum(entry.fingerprint != state.fingerprint for entry in state.counting)
    if has_changed and on_other_data:
        logger.warning(
            "the data changed since the ledger's last charge: %d charges on earlier data count against the present "
            "data, too. If no person is in both, start a new account before the next round: fedsvd privacy ledger "
            'PATH --new-account "reason".',
            on_other_data,
        )
