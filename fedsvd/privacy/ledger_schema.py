"""What a ledger holds, and how one finds that it is whole.

Every charge carries a digest over itself and the digest before it, from the owner on: a row that was changed or taken
out breaks the chain. Nothing within the file can tell that its newest rows are missing, as in an old backup.
"""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedsvd.errors import LedgerError

APPLICATION_ID = int.from_bytes(b"fsvl")
SCHEMA_VERSION = 1
SPEND_COLUMNS = (
    "run_id, server_round, message_id, noise_multiplier, sample_rate, steps, "
    "target_epsilon, target_delta, max_epsilon, max_delta, accountant, reserved_at"
)
TABLES = (
    "CREATE TABLE owner (fingerprint TEXT NOT NULL, created_at TEXT NOT NULL)",
    """CREATE TABLE spend (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL,
    server_round INTEGER NOT NULL,
    message_id TEXT NOT NULL UNIQUE,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    target_epsilon REAL NOT NULL,
    target_delta REAL NOT NULL,
    max_epsilon REAL NOT NULL,
    max_delta REAL NOT NULL,
    accountant TEXT NOT NULL,
    reserved_at TEXT NOT NULL,
    digest TEXT NOT NULL
)""",
    """CREATE TABLE release (
    spend_id INTEGER PRIMARY KEY REFERENCES spend (id),
    released_at TEXT NOT NULL
)""",
)
TRIGGERS = tuple(
    f"CREATE TRIGGER {table}_keeps_every_row_from_{event.lower()} BEFORE {event} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for table in ("owner", "spend", "release")
    for event in ("UPDATE", "DELETE")
)


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(previous: str, values: Sequence[object]) -> str:
    """Return the SHA-256, in hexadecimal, that ties a row to all rows before it."""
    return hashlib.sha256("\x1f".join([previous, *map(repr, values)]).encode()).hexdigest()


def last_digest(connection: sqlite3.Connection) -> str:
    """Return what the next row is tied to."""
    row = connection.execute("SELECT digest FROM spend ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row else digest("", connection.execute("SELECT * FROM owner").fetchone())


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Check a ledger whole: whose file it is, which version, every page, every guard and every row.

    Raises:
        LedgerError: A newer version, or a file that everybody may write.
        sqlite3.Error: Anything else that is wrong with it.
    """
    if path.stat().st_mode & stat.S_IWOTH:
        raise LedgerError(f"everybody on this machine may write the privacy ledger {path}: run chmod 600 on it.")
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is no ledger of fedsvd")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the privacy ledger {path} was written by a newer fedsvd (its schema is {version}, the newest known here "
            f"is {SCHEMA_VERSION}); update this one."
        )
    if version < SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"its schema is {version}, which never was")
    # One look: within a transaction no other process can write between its parts.
    connection.execute("BEGIN")
    try:
        _check_whole(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    [found] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    [pages], [page_size] = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    if path.stat().st_size != pages * page_size:
        raise sqlite3.DatabaseError(f"it is {path.stat().st_size} bytes long instead of {pages * page_size}")
    statements = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    if sorted(statements) != sorted((*TABLES, *TRIGGERS)):
        raise sqlite3.DatabaseError("its tables or their guards have been changed")
    check_rows(connection)


def check_rows(connection: sqlite3.Connection) -> None:
    """Follow the chain of digests: a row that was changed, or removed before the last, breaks it."""
    owners = connection.execute("SELECT * FROM owner").fetchall()
    if len(owners) != 1:
        raise sqlite3.DatabaseError(f"it has {len(owners)} owners instead of one")
    tie = digest("", owners[0])
    for *values, written in connection.execute(f"SELECT {SPEND_COLUMNS}, digest FROM spend ORDER BY id"):  # noqa: S608
        tie = digest(tie, values)
        if tie != written:
            raise sqlite3.DatabaseError(f"the entry of run {values[0]}, round {values[1]} is not what was written")
    connection.execute("SELECT * FROM release").fetchall()
