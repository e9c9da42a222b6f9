"""The server's half of client-level privacy: secret sampling, an account a round, noise in the aggregate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply, flatten_parts, unflatten_parts
from fedsvd.privacy.client_level import add_noise, clipped_sum, run_spend
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import configured_budget
from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness
from fedsvd.runs.folder import write_text

_FINGERPRINT = "client-level account of one run"


class ClientLevelServer:
    """Draws clients and noise, and keeps the run's account on disk.

    Attributes:
        account: A name of this run that outlives the process: a resumed run is not a second one to its clients.

    Args:
        config: The run's configuration, with ``privacy=client_level``.
        ledger: SQLite file of the run's rounds, charged before a round's noise is drawn.
        randomness: None draws from the operating system's entropy; a given one is for tests.
    """

    def __init__(self, config: Config, ledger: Path, randomness: Randomness | None = None) -> None:
        self._config = config
        self._ledger = ledger
        self._spend = run_spend(config.privacy, config.train, config.federation)
        secure = config.privacy.secure_random
        self.account = _account_name(ledger.with_name("account"))
        self._randomness = randomness or (SecureRandomness() if secure else TorchRandomness())

    def sample(self) -> list[int]:
        """Draw each client with its own coin; nobody who knows the seed can tell who is in."""
        clients = self._config.federation.num_clients
        return next(self._randomness.batches(clients, self._spend.sample_rate, 1))

    def charge(self, server_round: int) -> float:
        """Write one more round into the account, and return ε of all rounds so far.

        Raises:
            BudgetExceededError: The round would exceed the budget, as when rounds are taken again after a crash.
        """
        # Every attempt draws new noise and costs anew, also that of a round taken again after a crash.
        attempt = uuid4().hex
        with Ledger.open(self._ledger, _FINGERPRINT) as ledger:
            budget = configured_budget(self._config.privacy)
            epsilon = ledger.reserve("server", server_round, attempt, replace(self._spend, steps=1), budget)
            ledger.mark_released(attempt)
        return epsilon

    def clipped_total(self, adapter: Adapter, replies: Iterable[Reply], parts: frozenset[Part]) -> list[Tensor]:
        """Clip and sum the updates of replies as they come, or of none at all, and keep no single one."""
        before = flatten_parts(adapter, parts)
        updates = (_update(adapter, reply, parts, before) for reply in replies)
        return clipped_sum(updates, before, self._config.privacy.max_update_norm)

    def aggregate(self, adapter: Adapter, total: Sequence[Tensor], parts: frozenset[Part]) -> Reply:
        """Turn what `clipped_total` came to into the one reply whose parts are the noised mean."""
        return self._moved(adapter, parts, total)

    def aggregate_sum(self, adapter: Adapter, mean: Reply, contributors: int, parts: frozenset[Part]) -> Reply:
        """Do the same with the plain mean of a secure sum, whose single updates cannot be clipped here."""
        update = _update(adapter, mean, parts, flatten_parts(adapter, parts))
        return self._moved(adapter, parts, [tensor * contributors for tensor in update])

    def _moved(self, adapter: Adapter, parts: frozenset[Part], total: Sequence[Tensor]) -> Reply:
        privacy = self._config.privacy
        if not privacy.noise_share:
            total = add_noise(total, self._spend.noise_multiplier * privacy.max_update_norm, self._randomness)
        divisor = self._spend.sample_rate * self._config.federation.num_clients
        before = zip(flatten_parts(adapter, parts), total, strict=True)
        moved = unflatten_parts(adapter, parts, [old.double() + move / divisor for old, move in before])
        noise_std = self._spend.noise_multiplier * privacy.max_update_norm / divisor
        return Reply(0, 1, {part: moved.part(part) for part in parts}, noise_std)


def _update(adapter: Adapter, reply: Reply, parts: frozenset[Part], before: Sequence[Tensor]) -> list[Tensor]:
    after = flatten_parts(adapter.with_parts(reply.parts), parts)
    return [new.double() - old.double() for new, old in zip(after, before, strict=True)]


def _account_name(path: Path) -> str:
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text(encoding="utf-8")
