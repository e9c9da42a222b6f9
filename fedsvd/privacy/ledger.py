"""A client's durable record of the privacy budget spent on its data: a SQLite file, written before a result is sent.

The ledger belongs to the data, not to the run: the spends of several runs on the same data add up. A spend is reserved
before training starts, so that a crash can only over-count.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy import ledger_schema, ledger_storage
from fedsvd.privacy.accounting import Spend, epsilon


@dataclass(frozen=True)
class Budget:
    """The privacy budget that a client allows.

    Attributes:
        target_epsilon: Maximum ε of one run, as identified by Flower's run id, at ``target_delta``.
        target_delta: δ of one run.
        max_epsilon: Maximum ε of all spends in the ledger, at ``max_delta``.
        max_delta: δ of all spends in the ledger.
        accountant: As for `fedsvd.privacy.accounting.epsilon`.
    """

    target_epsilon: float
    target_delta: float
    max_epsilon: float
    max_delta: float
    accountant: str


@dataclass(frozen=True)
class Entry:
    """One charge: the run, round and message that caused it, the spend, and the budget at that time.

    Attributes:
        run_id: Flower's run id, or the account of a run that is charged as a whole.
        server_round: The round; 0 for a run that is charged as a whole.
        message_id: Flower's message id; for a run that is charged as a whole, an id made from the account.
        spend: The spend that was charged.
        budget: The budget that the client allowed at that time.
        reserved_at: Time of the charge, before training; UTC, ISO 8601.
        released_at: Time at which the result was released for sending, in the same format. None if it was never
            released; then it cannot have left the client.
    """

    run_id: str
    server_round: int
    message_id: str
    spend: Spend
    budget: Budget
    reserved_at: str
    released_at: str | None


class Ledger:
    """One client's ledger; open it with `Ledger.open` or `Ledger.read`, as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, fingerprint: str) -> Ledger:
        """Open the ledger at ``path``, or create one for the data that ``fingerprint`` identifies.

        Raises:
            LedgerError: The file is damaged, is not a ledger, belongs to other data, was written by a newer version, is
                world-writable, or cannot be read and written.
        """
        return cls(path, ledger_storage.connect(path, fingerprint))

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Open a ledger read-only, whichever data it belongs to.

        Raises:
            LedgerError: The file does not exist, is damaged, is not a ledger, was written by a newer version, is
                world-writable, or has an unfinished write that must be rolled back first.
        """
        return cls(path, ledger_storage.connect_to_read(path))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data that this ledger belongs to."""
        return str(self._connection.execute("SELECT fingerprint FROM owner").fetchone()[0])

    def reserve(self, run_id: str, server_round: int, message_id: str, spend: Spend, budget: Budget) -> float:
        """Charge a spend if it is within the budget; when this method returns, the charge is on disk.

        A charge pays for one result. A message that was charged before is refused, whether or not its result was sent:
        training on it again would give a second result with fresh noise.

        Returns:
            ε of the whole history, including this spend, at ``budget.target_delta``.

        Raises:
            ReplayedMessageError: The message was charged before; nothing was charged.
            BudgetExceededError: The run or the whole history would exceed the budget; nothing was charged.
            LedgerError: The ledger is damaged or cannot be written.
        """
        with ledger_storage.transaction(self._connection, self._path):
            entries = self.entries()
            for entry in entries:
                if entry.message_id == message_id:
                    raise ReplayedMessageError(
                        f"message {message_id} was charged at {entry.reserved_at} for round {entry.server_round} of "
                        f"run {entry.run_id}; a charge pays for one result. A new message is charged separately."
                    )
            return self._charge(entries, run_id, server_round, message_id, spend, budget)

    def reserve_run(self, account: str, spend: Spend, budget: Budget) -> float:
        """Charge a whole run once, before its first result; later calls for the same account change nothing.

        Use this only if another party adds the noise (client-level privacy, where the server does), and the whole run
        has the same cost whatever this client does. Here, one charge pays for any number of results.

        Returns:
            ε of the whole history at ``budget.target_delta``.

        Raises:
            BudgetExceededError: As for `reserve`.
            LedgerError: The account was charged for another mechanism, or the ledger is damaged or cannot be written.
        """
        message_id = f"whole run {account}"
        with ledger_storage.transaction(self._connection, self._path):
            entries = self.entries()
            charged = {entry.message_id: entry.spend for entry in entries}.get(message_id)
            if charged == spend:
                return epsilon([entry.spend for entry in entries], budget.target_delta, budget.accountant)
            if charged is not None:
                raise LedgerError(
                    f"account {account} was already charged for {charged} and cannot be charged for {spend}: the "
                    "mechanism of a run must not change. Start a new run."
                )
            after = self._charge(entries, account, 0, message_id, spend, budget)
            self._release(message_id)
        return after

    def mark_released(self, message_id: str) -> None:
        """Record that the result of a charged message is released; call this before the result is sent.

        Raises:
            LedgerError: The message was never charged, its result was already released, or the ledger is damaged.
        """
        with ledger_storage.transaction(self._connection, self._path):
            charged = {entry.message_id: entry for entry in self.entries()}.get(message_id)
            if charged is None:
                raise LedgerError(f"message {message_id} was never charged; its result must not be sent.")
            if charged.released_at is not None:
                raise LedgerError(
                    f"the result of message {message_id} was released at {charged.released_at}; it must not be "
                    "released a second time."
                )
            self._release(message_id)

    def history(self) -> list[Spend]:
        """Return every spend, oldest first."""
        return [entry.spend for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Return every charge, oldest first."""
        with ledger_storage.as_ledger_error(self._path):
            rows = self._connection.execute(
                f"SELECT {ledger_schema.SPEND_COLUMNS}, released_at "  # noqa: S608
                "FROM spend LEFT JOIN release ON spend_id = spend.id ORDER BY spend.id"
            ).fetchall()
        return [Entry(row[0], row[1], row[2], Spend(*row[3:6]), Budget(*row[6:11]), row[11], row[12]) for row in rows]

    def _charge(
        self,
        entries: Sequence[Entry],
        run_id: str,
        server_round: int,
        message_id: str,
        spend: Spend,
        budget: Budget,
    ) -> float:
        """Check and write a charge within the caller's transaction, and return ε of the whole history with it."""
        history = [entry.spend for entry in entries]
        this_run = [entry.spend for entry in entries if entry.run_id == run_id]
        _check_budget(this_run, spend, budget.target_epsilon, budget.target_delta, budget.accountant, "this run")
        _check_budget(history, spend, budget.max_epsilon, budget.max_delta, budget.accountant, "all charges")
        after = epsilon([*history, spend], budget.target_delta, budget.accountant)
        noise_multiplier, sample_rate, steps = astuple(spend)
        *amounts, accountant = astuple(budget)
        charge = (run_id, server_round, message_id, float(noise_multiplier), float(sample_rate), steps)
        values = (*charge, *map(float, amounts), accountant, ledger_schema.now())
        digest = ledger_schema.digest(ledger_schema.last_digest(self._connection), values)
        placeholders = ", ".join("?" * (len(values) + 1))
        self._connection.execute(
            f"INSERT INTO spend ({ledger_schema.SPEND_COLUMNS}, digest) VALUES ({placeholders})",  # noqa: S608
            (*values, digest),
        )
        return after

    def _release(self, message_id: str) -> None:
        self._connection.execute(
            "INSERT INTO release SELECT id, ? FROM spend WHERE message_id = ?", (ledger_schema.now(), message_id)
        )


def _check_budget(
    history: Sequence[Spend], spend: Spend, limit: float, target_delta: float, accountant: str, scope: str
) -> None:
    after = epsilon([*history, spend], target_delta, accountant)
    if after > limit:
        before = epsilon(history, target_delta, accountant)
        raise BudgetExceededError(
            f"{spend.steps} more steps with noise multiplier {spend.noise_multiplier:.4g} at sample rate "
            f"{spend.sample_rate:.4g} would raise the ε of {scope} from {before:g} to {after:g} at "
            f"δ = {target_delta:g}; this client allows {limit:g}."
        )
