"""The server side of client-level privacy: secret client sampling, charging of each round, noise in the aggregate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from fedsvd.config import Config
from fedsvd.errors import BudgetExceededError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply, flatten_parts, unflatten_parts
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.client_level import add_noise, clipped_sum, run_spend
from fedsvd.privacy.ledger import Entry, Ledger
from fedsvd.privacy.ledger_accounts import SERVER_FINGERPRINT
from fedsvd.privacy.ledger_checks import check_budget
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.plan import configured_budget
from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness
from fedsvd.runs.folder import account_path, write_text
from server.replies import RoundRecord

# The run of all charges in the server's ledger.
_RUN = "server"


class ClientLevelServer:
    """Samples clients, draws noise, and charges rounds to the run's ledger.

    Attributes:
        account: Name of this run in the clients' ledgers. It is stored in the run directory, so that clients charge a
            resumed run to the same budget.

    Args:
        config: The run's configuration, with ``privacy=client_level``.
        ledger: SQLite file to which each round is charged before its noise is drawn or, if the clients add the noise,
            before they are asked to.
        randomness: Source of randomness, for tests; None for the one of ``privacy.secure_random``.
    """

    def __init__(self, config: Config, ledger: Path, randomness: Randomness | None = None) -> None:
        self._config = config
        self._ledger = ledger
        self._spend = run_spend(config.privacy, config.train, config.federation)
        self._round_spend = replace(self._spend, steps=1)
        self._budget = configured_budget(config.privacy)
        secure = config.privacy.secure_random
        self.account = account_name(account_path(ledger))
        self._randomness = randomness or (SecureRandomness() if secure else TorchRandomness())

    @property
    def prepaid_account(self) -> str:
        """The account that each client charges with the whole run before the first draw; empty with shared noise."""
        return self.account if self._config.privacy.is_charged_in_advance else ""

    @property
    def spend(self) -> Spend:
        """The mechanism of the whole run, with one step per round."""
        return self._spend

    def sample_clients(self) -> list[int]:
        """Sample each client independently with the run's sample rate (Poisson sampling), independent of the seed."""
        clients = self._config.federation.num_clients
        return next(self._randomness.batches(clients, self._spend.sample_rate, 1))

    def admit(self, record: RoundRecord) -> None:
        """Check that the budget covers a round, before any client is asked to train.

        If the clients add the noise, their sum is the private result, which the server sees as soon as it is unmasked.
        The round is then charged here.

        Args:
            record: The round, which is told what was charged so far.

        Raises:
            BudgetExceededError: If the round would exceed the budget, e.g. because rounds were repeated after a crash.
        """
        charges = self._record_charges(record)
        try:
            if self._config.privacy.noise_share:
                self._charge(record)
            else:
                check_budget(charges, _RUN, self._round_spend, self._budget, SERVER_FINGERPRINT)
        except BudgetExceededError as error:
            raise BudgetExceededError(
                f"the run's budget does not cover another round: {record.server_rounds} rounds were charged, including "
                f"those that were interrupted and repeated, and {self._spend.steps} were planned. Use the model as it "
                f"is, or start a new run. ({error})"
            ) from error

    def charge_noise(self, record: RoundRecord) -> None:
        """Charge a round before its noise is drawn here; with shared noise, `admit` has charged it.

        Raises:
            BudgetExceededError: As for `admit`, which has checked this.
        """
        if not self._config.privacy.noise_share:
            self._charge(record)

    def _charge(self, record: RoundRecord) -> None:
        # Each attempt draws new noise and is charged, including a repetition of a round after a crash.
        attempt = uuid4().hex
        with self._open() as ledger:
            ledger.reserve(_RUN, record.server_round, attempt, self._round_spend, self._budget)
            ledger.mark_released(attempt)
        record.is_charged = True
        self._record_charges(record)

    def _record_charges(self, record: RoundRecord) -> list[Entry]:
        """Enter ε and the number of all charges so far in the round's record, and return the charges."""
        with self._open() as ledger:
            charges = ledger.state().counting
        spends = [entry.spend for entry in charges]
        record.epsilon = epsilon(spends, self._budget.target_delta, self._budget.accountant)
        record.server_rounds = sum(spend.steps for spend in spends)
        return charges

    def _open(self) -> Ledger:
        return Ledger.open(self._ledger, SERVER_FINGERPRINT, strict=True)

    def sum_clipped_updates(self, adapter: Adapter, replies: Iterable[Reply], parts: frozenset[Part]) -> list[Tensor]:
        """Clip and sum the updates of all replies as they arrive, without storing them; zero without replies."""
        before = flatten_parts(adapter, parts)
        updates = (_update(adapter, reply, parts, before) for reply in replies)
        return clipped_sum(updates, before, self._config.privacy.max_update_norm)

    def aggregate(self, adapter: Adapter, total: Sequence[Tensor], parts: frozenset[Part]) -> Reply:
        """Return one reply with the noisy mean of the updates that `sum_clipped_updates` summed."""
        noise_std = self._spend.noise_multiplier * self._config.privacy.max_update_norm
        return self._mean(adapter, parts, add_noise(total, noise_std, self._randomness), noise_std)

    def aggregate_secure_mean(self, adapter: Adapter, mean: Reply, contributors: int, parts: frozenset[Part]) -> Reply:
        """Return the same for the unweighted mean of a secure sum, whose single updates cannot be clipped here."""
        update = _update(adapter, mean, parts, flatten_parts(adapter, parts))
        total = [tensor * contributors for tensor in update]
        if not self._config.privacy.noise_share:
            return self.aggregate(adapter, total, parts)
        return self._mean(adapter, parts, total, self.shared_noise_std(contributors) * contributors)

    def shared_noise_std(self, contributors: int) -> float:
        """Return the standard deviation of the noise in a secure mean to which every client has added its share."""
        if not self._config.privacy.noise_share:
            return 0.0
        share = client_noise_multiplier(self._spend.noise_multiplier, self._config)
        return share * self._config.privacy.max_update_norm / math.sqrt(contributors)

    def _mean(self, adapter: Adapter, parts: frozenset[Part], total: Sequence[Tensor], noise_std: float) -> Reply:
        """Return one reply with the mean of a sum of updates, whose noise has standard deviation ``noise_std``."""
        divisor = self._spend.sample_rate * self._config.federation.num_clients
        pairs = zip(flatten_parts(adapter, parts), total, strict=True)
        updated = unflatten_parts(adapter, parts, [old.double() + delta / divisor for old, delta in pairs])
        return Reply(0, 1, {part: updated.part(part) for part in parts}, noise_std / divisor)


def _update(adapter: Adapter, reply: Reply, parts: frozenset[Part], before: Sequence[Tensor]) -> list[Tensor]:
    after = flatten_parts(adapter.with_parts(reply.parts), parts)
    return [new.double() - old.double() for new, old in zip(after, before, strict=True)]


def account_name(path: Path) -> str:
    """Return the name of a run, which is drawn once and stored in a file."""
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text(encoding="utf-8")
