"""One round's charge to the client's ledger: on disk before training, and closed before the result leaves."""

from __future__ import annotations

from dataclasses import dataclass

from client.identity import ClientIdentity
from fedsvd.config import Config
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import calibrate_run


@dataclass(frozen=True)
class Charge:
    """What was charged, and what the ledger holds with it.

    Attributes:
        spend: The charge: a round's steps, or a whole run's.
        epsilon: ε of the whole ledger at the run's δ.
        steps: Noisy steps of the whole ledger.
    """

    spend: Spend
    epsilon: float
    steps: int


def charge_round(
    config: Config, identity: ClientIdentity, fingerprint: str, num_examples: int, server_round: int, message_id: str
) -> Charge:
    """Charge one round of DP-SGD; when this returns, it is on disk.

    Raises:
        LimitError: The noise is below this client's least.
        ReplayedMessageError: The message was charged before.
        BudgetExceededError: The budget does not hold the round.
        LedgerError: The ledger cannot be trusted or written.
    """
    run = calibrate_run(config, num_examples)
    identity.limits.check_noise(run)
    spend = Spend(run.noise_multiplier, run.sample_rate, config.train.local_steps)
    with Ledger.open(identity.ledger, fingerprint) as ledger:
        budget = identity.limits.budget(config.privacy)
        epsilon = ledger.reserve(str(identity.run_id), server_round, message_id, spend, budget)
        return Charge(spend, epsilon, sum(entry.steps for entry in ledger.history()))


def mark_released(identity: ClientIdentity, fingerprint: str, message_id: str) -> None:
    """Note that a charged round's result is about to leave; raises `LedgerError` where it may not."""
    with Ledger.open(identity.ledger, fingerprint) as ledger:
        ledger.mark_released(message_id)


def charge_whole_run(config: Config, identity: ClientIdentity, fingerprint: str, account: str) -> Charge:
    """Charge all rounds of client-level privacy at once, the first time that ``account`` is named.

    Raises:
        BudgetExceededError: The budget does not hold the run.
        LedgerError: The ledger cannot be trusted or written, or the account was opened for another mechanism.
    """
    with Ledger.open(identity.ledger, fingerprint) as ledger:
        run = calibrate_run(config, 1)
        epsilon = ledger.reserve_run(account, run, identity.limits.budget(config.privacy))
        return Charge(run, epsilon, sum(entry.steps for entry in ledger.history()))
