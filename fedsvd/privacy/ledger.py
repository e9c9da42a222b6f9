"""A client's durable record of every spend on its data: SQLite, written before a result leaves.

The ledger belongs to the data, not to the run: a second run on the same data adds up. A spend is reserved before
training starts, so that a crash can only over-count.
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
    """What a client allows.

    Attributes:
        target_epsilon: Most ε of one run, by Flower's run id, at ``target_delta``.
        target_delta: δ of one run.
        max_epsilon: Most ε of all that the ledger holds, at ``max_delta``.
        max_delta: δ of all that the ledger holds.
        accountant: As for `fedsvd.privacy.accounting.epsilon`.
    """

    target_epsilon: float
    target_delta: float
    max_epsilon: float
    max_delta: float
    accountant: str


@dataclass(frozen=True)
class Entry:
    """One charge: which run, round and message asked for it, for what, under which budget.

    Attributes:
        run_id: Flower's number of the run.
        server_round: The round.
        message_id: Flower's number of the message.
        spend: What was charged.
        budget: What the client allowed then.
        reserved_at: UTC, ISO 8601; before training.
        released_at: When the result was handed on; None where it never was, and could not have left.
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
        """Open a ledger, or start one for the data that ``fingerprint`` identifies.

        Raises:
            LedgerError: The file is damaged, is no ledger, keeps the account of other data, was written by a newer
                version, may be written by everybody, or cannot be read and written.
        """
        return cls(path, ledger_storage.connect(path, fingerprint))

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Open a ledger for reading alone, whosever data it is about.

        Raises:
            LedgerError: There is none, or it is damaged or no ledger.
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
        """The data that this ledger is about."""
        return str(self._connection.execute("SELECT fingerprint FROM owner").fetchone()[0])

    def reserve(self, run_id: str, server_round: int, message_id: str, spend: Spend, budget: Budget) -> float:
        """Charge a spend if the budget holds it; when this returns, the charge is on disk.

        A charge pays for one result. A message that was charged before is refused, whatever became of its result:
        trained again, it would give a second result with fresh noise.

        Returns:
            ε of the whole history, this spend included, at ``budget.target_delta``.

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
                        f"run {entry.run_id}; a charge pays for one result. A new message would be charged anew."
                    )
            return self._charge(entries, run_id, server_round, message_id, spend, budget)

    def reserve_run(self, account: str, spend: Spend, budget: Budget) -> float:
        """Charge a whole run once, before its first result; later calls for the same account change nothing.

        Only for noise that somebody else adds to what leaves (client-level privacy, where the server does), and that
        the whole run costs whatever this client does: here a charge pays for any number of results.

        Returns:
            ε of the whole history at ``budget.target_delta``.

        Raises:
            BudgetExceededError: As `reserve`.
            LedgerError: The account was opened for another mechanism, or the ledger is damaged or cannot be written.
        """
        message_id = f"whole run {account}"
        with ledger_storage.transaction(self._connection, self._path):
            entries = self.entries()
            known = {entry.message_id: entry.spend for entry in entries}.get(message_id)
            if known == spend:
                return epsilon([entry.spend for entry in entries], budget.target_delta, budget.accountant)
            if known is not None:
                raise LedgerError(f"account {account} was charged for {known} and is now asked for {spend}.")
            after = self._charge(entries, account, 0, message_id, spend, budget)
            self._release(message_id)
        return after

    def mark_released(self, message_id: str) -> None:
        """Note that the result of a charged message is handed on; call it before it leaves.

        Raises:
            LedgerError: The message was never charged, its result was handed on before, or the ledger is damaged.
        """
        with ledger_storage.transaction(self._connection, self._path):
            charged = {entry.message_id: entry for entry in self.entries()}.get(message_id)
            if charged is None:
                raise LedgerError(f"message {message_id} was never charged; its result must not leave.")
            if charged.released_at is not None:
                raise LedgerError(f"message {message_id} had its result at {charged.released_at}; there is no second.")
            self._release(message_id)

    def history(self) -> list[Spend]:
        """Return every spend, oldest first."""
        return [entry.spend for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Return every charge, oldest first."""
        with ledger_storage.explained(self._path):
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
        """Write a charge that the budget holds, within the caller's transaction, and return ε with it."""
        history = [entry.spend for entry in entries]
        this_run = [entry.spend for entry in entries if entry.run_id == run_id]
        _check_budget(this_run, spend, budget.target_epsilon, budget.target_delta, budget.accountant, "this run's")
        _check_budget(history, spend, budget.max_epsilon, budget.max_delta, budget.accountant, "its")
        after = epsilon([*history, spend], budget.target_delta, budget.accountant)
        noise_multiplier, sample_rate, steps = astuple(spend)
        *amounts, accountant = astuple(budget)
        asked = (run_id, server_round, message_id, float(noise_multiplier), float(sample_rate), steps)
        values = (*asked, *map(float, amounts), accountant, ledger_schema.now())
        tie = ledger_schema.digest(ledger_schema.last_digest(self._connection), values)
        places = ", ".join("?" * (len(values) + 1))
        self._connection.execute(
            f"INSERT INTO spend ({ledger_schema.SPEND_COLUMNS}, digest) VALUES ({places})",  # noqa: S608
            (*values, tie),
        )
        return after

    def _release(self, message_id: str) -> None:
        self._connection.execute(
            "INSERT INTO release SELECT id, ? FROM spend WHERE message_id = ?", (ledger_schema.now(), message_id)
        )


def _check_budget(
    history: Sequence[Spend], spend: Spend, most: float, target_delta: float, accountant: str, whose: str
) -> None:
    after = epsilon([*history, spend], target_delta, accountant)
    if after > most:
        before = epsilon(history, target_delta, accountant)
        raise BudgetExceededError(
            f"{spend.steps} more steps with noise multiplier {spend.noise_multiplier:.4g} at sample rate "
            f"{spend.sample_rate:.4g} would bring {whose} ε from {before:g} to {after:g} at δ = {target_delta:g}; "
            f"this client allows {most:g}."
        )
