"""The schema of a ledger file, and its integrity checks.

Every charge stores a digest of its own values and the previous digest, starting with the owner row, so that a changed
or removed row breaks the chain. The file itself cannot show that its newest rows are missing, as in an old backup.
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
    """Return the current time in UTC, in ISO 8601 format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(previous: str, values: Sequence[object]) -> str:
    """Return the hexadecimal SHA-256 of the previous digest and a row's values, which chains a row to all before it."""
    return hashlib.sha256("\x1f".join([previous, *map(repr, values)]).encode()).hexdigest()


def last_digest(connection: sqlite3.Connection) -> str:
    """Return the digest of the last charge, or of the owner row if there are no charges."""
    row = connection.execute("SELECT digest FROM spend ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row else digest("", connection.execute("SELECT * FROM owner").fetchone())


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Check a ledger completely: file permissions, application id, version, every page, every trigger and every row.

    Raises:
        LedgerError: The file is world-writable, or was written by a newer version.
        sqlite3.Error: Any other check failed.
    """
    if path.stat().st_mode & stat.S_IWOTH:
        raise LedgerError(f"the privacy ledger {path} is world-writable; run chmod 600 on it.")
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is not a fedsvd ledger")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the privacy ledger {path} was written by a newer fedsvd: its schema version is {version}, and this "
            f"installation supports versions up to {SCHEMA_VERSION}. Update fedsvd."
        )
    if version < SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"its schema version {version} does not exist")
    # Within one transaction, no other process can write between the checks.
    connection.execute("BEGIN")
    try:
        _check_contents(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _check_contents(connection: sqlite3.Connection, path: Path) -> None:
    [result] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)
    [pages], [page_size] = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    if path.stat().st_size != pages * page_size:
        raise sqlite3.DatabaseError(f"its size is {path.stat().st_size} bytes instead of {pages * page_size}")
    statements = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    if sorted(statements) != sorted((*TABLES, *TRIGGERS)):
        raise sqlite3.DatabaseError("its tables or triggers have been changed")
    check_rows(connection)


def check_rows(connection: sqlite3.Connection) -> None:
    """Check the chain of digests, which breaks if a row was changed, or if any row but the last ones was removed.

    Raises:
        sqlite3.DatabaseError: The chain is broken, or there is not exactly one owner.
    """
    owners = connection.execute("SELECT * FROM owner").fetchall()
    if len(owners) != 1:
        raise sqlite3.DatabaseError(f"it has {len(owners)} owners instead of one")
    expected = digest("", owners[0])
    for *values, stored in connection.execute(f"SELECT {SPEND_COLUMNS}, digest FROM spend ORDER BY id"):  # noqa: S608
        expected = digest(expected, values)
        if expected != stored:
            raise sqlite3.DatabaseError(f"the entry of run {values[0]}, round {values[1]} has been changed")
    # The release table has no digests; this only checks that it can be read.
    connection.execute("SELECT * FROM release").fetchall()
