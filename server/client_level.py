"""The server side of client-level privacy: secret client sampling, charging of each round, noise in the aggregate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply, flatten_parts, unflatten_parts
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.client_level import add_noise, clipped_sum, run_spend
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.ledger_accounts import SERVER_FINGERPRINT
from fedsvd.privacy.plan import configured_budget
from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness
from fedsvd.runs.folder import write_text


class ClientLevelServer:
    """Samples clients, draws noise, and charges rounds to the run's ledger.

    Attributes:
        account: Name of this run in the clients' ledgers. It is stored in the run directory, so that clients do not
            charge a resumed run again.

    Args:
        config: The run's configuration, with ``privacy=client_level``.
        ledger: SQLite file to which each round is charged before its noise is drawn.
        randomness: Source of randomness, for tests; None for the one of ``privacy.secure_random``.
    """

    def __init__(self, config: Config, ledger: Path, randomness: Randomness | None = None) -> None:
        self._config = config
        self._ledger = ledger
        self._spend = run_spend(config.privacy, config.train, config.federation)
        secure = config.privacy.secure_random
        self.account = _account_name(ledger.with_name("account"))
        self._randomness = randomness or (SecureRandomness() if secure else TorchRandomness())

    @property
    def spend(self) -> Spend:
        """The mechanism of the whole run, with one step per round."""
        return self._spend

    def sample_clients(self) -> list[int]:
        """Sample each client independently with the run's sample rate (Poisson sampling), independent of the seed."""
        clients = self._config.federation.num_clients
        return next(self._randomness.batches(clients, self._spend.sample_rate, 1))

    def charge(self, server_round: int) -> float:
        """Charge one round to the ledger, and return ε of all rounds so far.

        Raises:
            BudgetExceededError: If the round would exceed the budget, e.g. because rounds were repeated after a crash.
        """
        # Each attempt draws new noise and is charged, including a repetition of a round after a crash.
        attempt = uuid4().hex
        with Ledger.open(self._ledger, SERVER_FINGERPRINT, strict=True) as ledger:
            budget = configured_budget(self._config.privacy)
            epsilon = ledger.reserve("server", server_round, attempt, replace(self._spend, steps=1), budget)
            ledger.mark_released(attempt)
        return epsilon

    def sum_clipped_updates(self, adapter: Adapter, replies: Iterable[Reply], parts: frozenset[Part]) -> list[Tensor]:
        """Clip and sum the updates of all replies as they arrive, without storing them; zero without replies."""
        before = flatten_parts(adapter, parts)
        updates = (_update(adapter, reply, parts, before) for reply in replies)
        return clipped_sum(updates, before, self._config.privacy.max_update_norm)

    def aggregate(self, adapter: Adapter, total: Sequence[Tensor], parts: frozenset[Part]) -> Reply:
        """Return one reply with the noisy mean of the updates that `sum_clipped_updates` summed."""
        return self._noisy_mean(adapter, parts, total)

    def aggregate_secure_mean(self, adapter: Adapter, mean: Reply, contributors: int, parts: frozenset[Part]) -> Reply:
        """Return the same for the unweighted mean of a secure sum, whose single updates cannot be clipped here."""
        update = _update(adapter, mean, parts, flatten_parts(adapter, parts))
        return self._noisy_mean(adapter, parts, [tensor * contributors for tensor in update])

    def _noisy_mean(self, adapter: Adapter, parts: frozenset[Part], total: Sequence[Tensor]) -> Reply:
        privacy = self._config.privacy
        if not privacy.noise_share:
            total = add_noise(total, self._spend.noise_multiplier * privacy.max_update_norm, self._randomness)
        divisor = self._spend.sample_rate * self._config.federation.num_clients
        pairs = zip(flatten_parts(adapter, parts), total, strict=True)
        updated = unflatten_parts(adapter, parts, [old.double() + delta / divisor for old, delta in pairs])
        noise_std = self._spend.noise_multiplier * privacy.max_update_norm / divisor
        return Reply(0, 1, {part: updated.part(part) for part in parts}, noise_std)


def _update(adapter: Adapter, reply: Reply, parts: frozenset[Part], before: Sequence[Tensor]) -> list[Tensor]:
    after = flatten_parts(adapter.with_parts(reply.parts), parts)
    return [new.double() - old.double() for new, old in zip(after, before, strict=True)]


def _account_name(path: Path) -> str:
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text(encoding="utf-8")
