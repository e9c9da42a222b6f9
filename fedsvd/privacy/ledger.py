"""A client's durable record of the privacy budget spent on its data: a SQLite file, written before a result is sent.

The ledger belongs to the data, not to the run: the spends of several runs on the same data add up. If the data change,
the ledger continues, and all earlier spends count against the new data, too: this is an upper bound whatever the
overlap of the two. Only the owner can start a new account, for data of other people
(`fedsvd.privacy.ledger_accounts`). A spend is reserved before training starts, so that a crash can only over-count.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType

from fedsvd.errors import LedgerError, ReplayedMessageError
from fedsvd.privacy import ledger_schema, ledger_storage
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger_checks import check_budget, check_data
from fedsvd.privacy.ledger_entries import Budget, Entry, Event, LedgerState, read_state
from fedsvd.runs.record import utc_now

__all__ = ["Budget", "Entry", "Event", "Ledger", "LedgerState"]


class Ledger:
    """One client's ledger; open it with `Ledger.open` or `Ledger.read`, as a context manager.

    Example:
        >>> import tempfile
        >>> import fedsvd
        >>> path = tempfile.mkdtemp() + "/ledger.sqlite"
        >>> budget = fedsvd.Budget(2.0, 1e-5, max_epsilon=1.6, max_delta=1e-5, accountant="prv")
        >>> spend = fedsvd.Spend(noise_multiplier=5.0, sample_rate=1.0, steps=2)
        >>> with fedsvd.Ledger.open(path, fingerprint="patients of 2024") as ledger:
        ...     ledger.reserve("first run", server_round=1, message_id="m1", spend=spend, budget=budget)
        ...     ledger.reserve("first run", server_round=2, message_id="m2", spend=spend, budget=budget)
        1.0608
        1.555
        >>> with fedsvd.Ledger.open(path, fingerprint="patients of 2024") as ledger:
        ...     ledger.reserve("first run", server_round=3, message_id="m3", spend=spend, budget=budget)
        Traceback (most recent call last):
            ...
        fedsvd.errors.BudgetExceededError: ...
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, data: str | None = None, strict: bool = True
    ) -> None:
        self._path = path
        self._connection = connection
        self._data = data
        self._strict = strict

    @classmethod
    def open(cls, path: str | Path, fingerprint: str, *, strict: bool = False) -> Ledger:
        """Open the ledger at ``path``, or create one for the data that ``fingerprint`` identifies.

        Args:
            path: The SQLite file.
            fingerprint: Fingerprint of the data that will be charged.
            strict: Refuse data other than those of the last charge. By default the ledger continues: the first charge
                records the change, and all earlier charges of the account count against the new data.

        Raises:
            LedgerError: The file is damaged, is not a ledger, was written by a newer version, is world-writable, or
                cannot be read and written; or the data belong to an earlier account, or are refused by ``strict``.
        """
        path = Path(path)
        ledger = cls(path, ledger_storage.connect(path, fingerprint), fingerprint, strict)
        try:
            ledger.check_data(fingerprint, strict=strict)
        except BaseException:
            ledger._connection.close()
            raise
        return ledger

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """Open a ledger read-only, whichever data it belongs to.

        Raises:
            LedgerError: The file does not exist, is damaged, is not a ledger, was written by a newer version, is
                world-writable, or has an unfinished write that must be rolled back first.
        """
        return cls(Path(path), ledger_storage.connect_to_read(Path(path)))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data that this ledger was last charged for, or created for."""
        return self.state().fingerprint

    def state(self) -> LedgerState:
        """Return all charges, events and the current account, read at one time."""
        with ledger_storage.snapshot(self._connection, self._path):
            return read_state(self._connection)

    def check_data(self, fingerprint: str, *, strict: bool = False) -> bool:
        """Check whether the current account may be charged for this data.

        Returns:
            Whether the data have changed since the last charge, so that earlier charges count against other data.

        Raises:
            LedgerError: An earlier account was charged for this data: a new account is for data of other people. Or,
                with ``strict``, the data have changed.
        """
        return check_data(self.state(), self._path, fingerprint, strict)

    def reserve(self, run_id: str, server_round: int, message_id: str, spend: Spend, budget: Budget) -> float:
        """Charge a spend if it is within the budget; when this method returns, the charge is on disk.

        A charge pays for one result. A message that was charged before is refused, whether or not its result was sent:
        training on it again would give a second result with fresh noise.

        Returns:
            ε of the account's whole history, including this spend, at ``budget.target_delta``.

        Raises:
            ReplayedMessageError: The message was charged before; nothing was charged.
            BudgetExceededError: The run or the account would exceed the budget; nothing was charged.
            LedgerError: The ledger is damaged or cannot be written.
        """
        with ledger_storage.transaction(self._connection, self._path):
            state = self._state_with_own_data()
            for entry in state.entries:
                if entry.message_id == message_id:
                    raise ReplayedMessageError(
                        f"message {message_id} was charged at {entry.reserved_at} for round {entry.server_round} of "
                        f"run {entry.run_id}; a charge pays for one result. A new message is charged separately."
                    )
            return self._charge(state.counting, run_id, server_round, message_id, spend, budget)

    def reserve_run(self, account: str, spend: Spend, budget: Budget) -> float:
        """Charge a whole run once, before its first result; later calls for the same account change nothing.

        Use this only if another party adds the noise (client-level privacy whose noise the server adds), and the whole
        run has the same cost whatever this client does. Here, one charge pays for any number of results, also if the
        data change during the run: what is protected is the client with all its data. A charge to an earlier account
        of this ledger does not pay for the current one. Where the clients add the noise, use `reserve`.

        Args:
            account: Name of the run, which is the same in all processes of the run.
            spend: The mechanism of the whole run.
            budget: The budget that the client allows.

        Returns:
            ε of the account's whole history at ``budget.target_delta``.

        Raises:
            BudgetExceededError: As for `reserve`.
            LedgerError: The account was charged for another mechanism, or the ledger is damaged or cannot be written.
        """
        with ledger_storage.transaction(self._connection, self._path):
            state = self._state_with_own_data()
            entries = state.counting
            message_id = f"whole run {account}" if state.account == 1 else f"account {state.account}: {account}"
            # A round of DP-SGD has a number from 1: its charge pays for one result only, whatever its message id.
            charged = {entry.message_id: entry.spend for entry in entries if not entry.server_round}.get(message_id)
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
        """Return the spends that count against the present data, oldest first: those of the current account."""
        return [entry.spend for entry in self.state().counting]

    def entries(self) -> list[Entry]:
        """Return every charge of every account, oldest first."""
        return list(self.state().entries)

    def _state_with_own_data(self) -> LedgerState:
        """Return the state within the caller's transaction, after recording that the data have changed, if so."""
        state = self.state()
        if self._data is None:
            raise LedgerError(f"the privacy ledger {self._path} was opened readonly; it cannot be charged.")
        if check_data(state, self._path, self._data, self._strict) or not state.is_bound:
            ledger_schema.add_event(
                self._connection, ledger_schema.DATA_CHANGE, state.fingerprint, self._data, reason=""
            )
            state = self.state()
        return state

    def _charge(
        self,
        counting: Sequence[Entry],
        run_id: str,
        server_round: int,
        message_id: str,
        spend: Spend,
        budget: Budget,
    ) -> float:
        """Check and write a charge within the caller's transaction, and return ε of the account with it."""
        check_budget(counting, run_id, spend, budget, self._data or "")
        after = epsilon([*(entry.spend for entry in counting), spend], budget.target_delta, budget.accountant)
        noise_multiplier, sample_rate, steps = astuple(spend)
        *amounts, accountant = astuple(budget)
        charge = (run_id, server_round, message_id, float(noise_multiplier), float(sample_rate), steps)
        values = (*charge, *map(float, amounts), accountant, utc_now())
        digest = ledger_schema.digest(ledger_schema.last_digest(self._connection), values)
        placeholders = ", ".join("?" * (len(values) + 1))
        self._connection.execute(
            f"INSERT INTO spend ({ledger_schema.SPEND_COLUMNS}, digest) VALUES ({placeholders})",  # noqa: S608
            (*values, digest),
        )
        return after

    def _release(self, message_id: str) -> None:
        self._connection.execute(
            "INSERT INTO release SELECT id, ? FROM spend WHERE message_id = ?", (utc_now(), message_id)
        )
