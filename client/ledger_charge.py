"""Charges to the client's ledger: on disk before training, and marked as released before the result is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from client.identity import ClientIdentity
from fedsvd.config import Config
from fedsvd.errors import LedgerError, PrivacyError, ReplayedMessageError
from fedsvd.privacy.accounting import Spend, rounded_to_multiple
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.ledger_entries import Budget
from fedsvd.privacy.plan import calibrate_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Charge:
    """A charge, and the state of the ledger after it.

    Attributes:
        spend: What was charged: the steps of one round or of the whole run.
        epsilon: ε of all charges of the ledger's current account at the run's δ, as the server may know it: rounded up
            to a multiple of ``privacy.target_epsilon`` if the exact value would tell a number of examples that the
            server does not learn. Within a run of its own ledger, this is the target itself.
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
    with _numbers_in_log(identity, _tells_size(config)):
        run = calibrate_run(config, num_examples)
        identity.limits.check_noise(run)
    spend = replace(run, steps=config.train.local_steps)
    return _charge_message(config, identity, fingerprint, str(identity.run_id), server_round, message_id, spend)


def charge_shared_noise(
    config: Config, identity: ClientIdentity, fingerprint: str, account: str, server_round: int, message_id: str
) -> Charge:
    """Charge one round of client-level privacy to which this client adds its share of the noise.

    The server sees each sum, also in a round that it repeats after a crash, so each contribution is charged. All rounds
    of ``account`` count against the budget of one run, whichever process of the server has started them.

    Raises:
        ReplayedMessageError: If the message was charged before.
        BudgetExceededError: If the round would exceed the budget.
        LedgerError: If the ledger is invalid or cannot be written.
    """
    spend = replace(calibrate_run(config, 1), steps=1)
    return _charge_message(config, identity, fingerprint, account, server_round, message_id, spend)


def mark_released(identity: ClientIdentity, fingerprint: str, message_id: str) -> None:
    """Record that the result of a charged round is about to be sent.

    Raises:
        LedgerError: If it must not be sent.
    """
    with _opened(identity, fingerprint) as ledger:
        ledger.mark_released(message_id)


def charge_whole_run(config: Config, identity: ClientIdentity, fingerprint: str, account: str) -> Charge:
    """Charge all rounds of a client-level private run at once, when ``account`` is first used.

    The cost follows from the chance of being sampled, so that a client that is never sampled has it, too. Every client
    is therefore charged when the server queries it, before the first draw; a round of training finds this charge. This
    is for runs in which the server adds the noise; see `charge_shared_noise` for the others.

    Raises:
        BudgetExceededError: If the run would exceed the budget.
        LedgerError: If the ledger is invalid or cannot be written, or the account was opened for another mechanism.
    """
    run = calibrate_run(config, 1)
    return _charge(config, identity, fingerprint, run, lambda ledger, budget: ledger.reserve_run(account, run, budget))


def _charge_message(
    config: Config,
    identity: ClientIdentity,
    fingerprint: str,
    run: str,
    server_round: int,
    message_id: str,
    spend: Spend,
) -> Charge:
    """Charge the mechanism of one message to a run."""

    def reserve(ledger: Ledger, budget: Budget) -> float:
        return ledger.reserve(run, server_round, message_id, spend, budget)

    return _charge(config, identity, fingerprint, spend, reserve)


def _charge(
    config: Config,
    identity: ClientIdentity,
    fingerprint: str,
    spend: Spend,
    reserve: Callable[[Ledger, Budget], float],
) -> Charge:
    """Charge a mechanism by a method of the ledger, which returns ε of all charges."""
    with _opened(identity, fingerprint) as ledger:
        budget = identity.limits.budget(config.privacy)
        has_changed = ledger.check_data(fingerprint, strict=identity.strict_ledger)
        tells_size = _tells_size(config, spend, ledger.history())
        with _numbers_in_log(identity, tells_size):
            epsilon = reserve(ledger, budget)
        _log_change(ledger, has_changed)
        reported = _bound(epsilon, config, budget) if tells_size else epsilon
        return Charge(spend, reported, sum(entry.steps for entry in ledger.history()))


def _tells_size(config: Config, spend: Spend | None = None, history: Sequence[Spend] = ()) -> bool:
    """Return whether ε or a mechanism tells the server a number of examples that it does not learn otherwise.

    It does not if all charges are those of the mechanism of this run, and this mechanism is public.
    """
    if config.federation.sends_counts:
        return False
    is_public = config.privacy.name == "client_level" or config.train.sample_rate is not None
    mechanisms = {(earlier.noise_multiplier, earlier.sample_rate) for earlier in history}
    return not is_public or (spend is not None and not mechanisms <= {(spend.noise_multiplier, spend.sample_rate)})


@contextmanager
def _numbers_in_log(identity: ClientIdentity, tells_size: bool) -> Iterator[None]:
    """Write errors whose numbers tell the number of examples to the client's log, and raise them without numbers.

    Raises:
        PrivacyError: Of the same class, without numbers.
    """
    try:
        yield
    except (LedgerError, ReplayedMessageError):
        raise
    except PrivacyError as error:
        if not tells_size or identity.limits.share_errors:
            raise
        logger.error("%s: %s", type(error).__name__, error)
        raise type(error)(
            "this client cannot train this round within its limits. Its log has the numbers, which would tell its "
            "number of examples."
        ) from None


def _bound(epsilon: float, config: Config, budget: Budget) -> float:
    """Return a bound on ε that does not depend on the number of examples."""
    bound = rounded_to_multiple(epsilon, config.privacy.target_epsilon)
    # The ledger has just enforced the limit, which does not depend on the number of examples either.
    limit = budget.max_epsilon if budget.max_delta == config.privacy.target_delta else bound
    return max(epsilon, min(bound, limit))


@contextmanager
def _opened(identity: ClientIdentity, fingerprint: str) -> Iterator[Ledger]:
    """Open the ledger; write its errors, with paths and fingerprints, to the client's log.

    Raises:
        LedgerError: Without these, unless the node's owner allows them (``share-errors``).
    """
    try:
        with Ledger.open(identity.ledger, fingerprint, strict=identity.strict_ledger) as ledger:
            yield ledger
    except LedgerError as error:
        logger.error("LedgerError: %s", " ".join([str(error), *getattr(error, "__notes__", ())]))
        if identity.limits.share_errors:
            raise
        message = str(error).replace(f"ledger {identity.ledger}", "ledger of this client")
        if error.__cause__ is not None:
            # The text of the cause quotes paths: the ledger's own, its folders', and those of temporary files.
            message = "the privacy ledger of this client cannot be used. Its log has the reason."
        raise LedgerError(message) from None


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
