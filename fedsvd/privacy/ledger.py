"""A client's durable record of every spend on its data: SQLite, written before a result leaves.

The ledger belongs to the data, not to the run: a second run on the same data adds up. A spend is reserved before
training starts, so that a crash can only over-count.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from fedsvd.errors import BudgetExceededError, LedgerError
from fedsvd.privacy.accounting import Spend, epsilon

_SCHEMA = """
CREATE TABLE IF NOT EXISTS owner (fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spend (
    run_id TEXT NOT NULL,
    server_round INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    reserved_at TEXT NOT NULL,
    PRIMARY KEY (run_id, server_round, message_id)
);
"""
_WAIT_S = 60.0


@dataclass(frozen=True)
class Entry:
    """One reserved spend: which run, round and message asked for it, and when (UTC, ISO 8601)."""

    run_id: str
    server_round: int
    message_id: str
    spend: Spend
    reserved_at: str


class Ledger:
    """One client's ledger; open it with `Ledger.open`, as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, fingerprint: str) -> Ledger:
        """Open a ledger, or start one for the data that ``fingerprint`` identifies.

        Raises:
            LedgerError: The file is damaged, is no ledger, or keeps the account of other data.
        """
        connection = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            connection.execute("PRAGMA synchronous=FULL")
            ledger = cls(path, connection)
            ledger._prepare(fingerprint)
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            raise LedgerError(
                f"the privacy ledger {path} cannot be used ({error}). Restore it from a backup; do not delete it: "
                "what it recorded has been spent."
            ) from error
        except LedgerError:
            if connection is not None:
                connection.close()
            raise
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def reserve(
        self,
        run_id: str,
        server_round: int,
        message_id: str,
        spend: Spend,
        *,
        target_epsilon: float,
        target_delta: float,
        accountant: str,
    ) -> float:
        """Charge a spend if the budget holds it; when this returns, the charge is on disk.

        The same message charged twice is charged once.

        Returns:
            ε of the whole history, this spend included.

        Raises:
            BudgetExceededError: The history with this spend would exceed ``target_epsilon``; nothing was charged.
            LedgerError: The message was charged before, with other steps or noise.
        """
        with self._transaction():
            history = self.history()
            known = self._find(run_id, server_round, message_id)
            if known is not None:
                if known != spend:
                    raise LedgerError(f"message {message_id} was charged as {known} before and now asks for {spend}.")
                return epsilon(history, target_delta, accountant)
            after = epsilon([*history, spend], target_delta, accountant)
            if after > target_epsilon:
                before = epsilon(history, target_delta, accountant)
                raise BudgetExceededError(
                    f"{spend.steps} more steps with noise multiplier {spend.noise_multiplier:.4g} at sample rate "
                    f"{spend.sample_rate:.4g} would bring ε from {before:g} to {after:g} at δ = {target_delta:g}; "
                    f"this client allows {target_epsilon:g}."
                )
            self._connection.execute(
                "INSERT INTO spend VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    run_id,
                    server_round,
                    message_id,
                    spend.noise_multiplier,
                    spend.sample_rate,
                    spend.steps,
                    datetime.now(UTC).isoformat(timespec="seconds"),
                ),
            )
        return after

    def history(self) -> list[Spend]:
        """Return every spend, oldest first."""
        return [entry.spend for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Return every spend with the message that asked for it, oldest first."""
        rows = self._connection.execute(
            "SELECT run_id, server_round, message_id, noise_multiplier, sample_rate, steps, reserved_at "
            "FROM spend ORDER BY rowid"
        )
        return [Entry(run, number, message, Spend(*spend), at) for run, number, message, *spend, at in rows]

    def _find(self, run_id: str, server_round: int, message_id: str) -> Spend | None:
        row = self._connection.execute(
            "SELECT noise_multiplier, sample_rate, steps FROM spend "
            "WHERE run_id = ? AND server_round = ? AND message_id = ?",
            (run_id, server_round, message_id),
        ).fetchone()
        return None if row is None else Spend(*row)

    def _prepare(self, fingerprint: str) -> None:
        check = self._connection.execute("PRAGMA quick_check").fetchone()[0]
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        with self._transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._connection.execute(statement)
            owners = [row[0] for row in self._connection.execute("SELECT fingerprint FROM owner")]
            if not owners:
                self._connection.execute("INSERT INTO owner VALUES (?)", (fingerprint,))
            elif owners != [fingerprint]:
                raise LedgerError(
                    f"the privacy ledger {self._path} keeps the account of other data (fingerprint {owners[0][:12]}…, "
                    f"this data has {fingerprint[:12]}…). Give this data a ledger of its own."
                )
            self.history()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
