"""The schema of a ledger file, and its integrity checks.

Every charge and every event (a change of the data, or a new account) stores a digest of its own values and the
previous digest, starting with the owner row, so that a changed or removed row breaks the chain. The file itself cannot
show that its newest rows are missing, as in an old backup.

Version 1 has no events. The first write by this version adds their table, in the same transaction as the write.
"""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import LedgerError
from fedsvd.runs.record import utc_now

APPLICATION_ID = int.from_bytes(b"fsvl")
SCHEMA_VERSION = 2
SPEND_COLUMNS = (
    "run_id, server_round, message_id, noise_multiplier, sample_rate, steps, "
    "target_epsilon, target_delta, max_epsilon, max_delta, accountant, reserved_at"
)
EVENT_COLUMNS = "after_spend, kind, old_fingerprint, new_fingerprint, reason, recorded_at"
DATA_CHANGE, NEW_ACCOUNT = "data", "account"
_TABLES_V1 = (
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
_EVENT_TABLE = """CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    after_spend INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('data', 'account')),
    old_fingerprint TEXT NOT NULL,
    new_fingerprint TEXT NOT NULL,
    reason TEXT NOT NULL,
    recorded_at TEXT NOT NULL,
    digest TEXT NOT NULL
)"""


def _triggers(*tables: str) -> tuple[str, ...]:
    return tuple(
        f"CREATE TRIGGER {table}_keeps_every_row_from_{event.lower()} BEFORE {event} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for table in tables
        for event in ("UPDATE", "DELETE")
    )


_STATEMENTS_V1 = (*_TABLES_V1, *_triggers("owner", "spend", "release"))
_MIGRATION = (_EVENT_TABLE, *_triggers("event"))
STATEMENTS = (*_STATEMENTS_V1, *_MIGRATION)


def digest(previous: str, values: Sequence[object]) -> str:
    """Return the hexadecimal SHA-256 of the previous digest and a row's values, which chains a row to all before it."""
    return hashlib.sha256("\x1f".join([previous, *map(repr, values)]).encode()).hexdigest()


def last_digest(connection: sqlite3.Connection) -> str:
    """Return the digest of the last charge or event, or of the owner row if there are none."""
    spend = connection.execute("SELECT id, digest FROM spend ORDER BY id DESC LIMIT 1").fetchone()
    event = connection.execute("SELECT after_spend, digest FROM event ORDER BY id DESC LIMIT 1").fetchone()
    if spend is None and event is None:
        return digest("", connection.execute("SELECT * FROM owner").fetchone())
    # An event follows the charge whose id it stores.
    return str(event[1] if spend is None or (event and event[0] >= spend[0]) else spend[1])


def read_events(connection: sqlite3.Connection) -> list[tuple[int, str, str, str, str, str]]:
    """Return the values of `EVENT_COLUMNS` of all events, oldest first; none in a ledger of version 1."""
    if not _has_events(connection):
        return []
    return connection.execute(f"SELECT {EVENT_COLUMNS} FROM event ORDER BY id").fetchall()  # noqa: S608


def add_event(connection: sqlite3.Connection, kind: str, old: str, new: str, reason: str) -> None:
    """Append an event within the caller's transaction; ``old`` and ``new`` are fingerprints."""
    [last_spend] = connection.execute("SELECT COALESCE(MAX(id), 0) FROM spend").fetchone()
    values = (last_spend, kind, old, new, reason, utc_now())
    chained = digest(last_digest(connection), ("event", *values))
    connection.execute(
        f"INSERT INTO event ({EVENT_COLUMNS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (*values, chained),
    )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a ledger of version 1 to the present version, within the caller's transaction."""
    if _version(connection) == SCHEMA_VERSION:
        return
    for statement in _MIGRATION:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _has_events(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'event'").fetchone())


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Check a ledger completely: file permissions, application id, version, every page, every trigger and every row.

    Raises:
        LedgerError: The file is world-writable, or was written by a newer version.
        sqlite3.Error: Any other check failed.
    """
    if path.stat().st_mode & stat.S_IWOTH:
        raise LedgerError(f"the privacy ledger {path} is world-writable; run chmod 600 on it.")
    [application] = connection.execute("PRAGMA application_id").fetchone()
    version = _version(connection)
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is not a fedsvd ledger")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the privacy ledger {path} was written by a newer fedsvd: its schema version is {version}, and this "
            f"installation supports versions up to {SCHEMA_VERSION}. Update fedsvd."
        )
    if version < 1:
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
    # Read again, within the transaction: another process may have migrated the ledger since.
    if sorted(statements) != sorted(_STATEMENTS_V1 if _version(connection) == 1 else STATEMENTS):
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
    for label, values, stored in _chained_rows(connection):
        expected = digest(expected, values)
        if expected != stored:
            raise sqlite3.DatabaseError(f"{label} has been changed")
    # The release table has no digests; this only checks that it can be read.
    connection.execute("SELECT * FROM release").fetchall()


def _chained_rows(connection: sqlite3.Connection) -> list[tuple[str, Sequence[object], str]]:
    """Return a label, the values and the stored digest of every charge and event, in the order of the chain."""
    rows: list[tuple[tuple[int, int, int], str, Sequence[object], str]] = []
    for key, *values, stored in connection.execute(f"SELECT id, {SPEND_COLUMNS}, digest FROM spend"):  # noqa: S608
        rows.append(((key, 0, 0), f"the entry of run {values[0]}, round {values[1]}", values, stored))
    if _has_events(connection):
        for key, *values, stored in connection.execute(f"SELECT id, {EVENT_COLUMNS}, digest FROM event"):  # noqa: S608
            rows.append(((values[0], 1, key), f"event {key}", ("event", *values), stored))
    return [row[1:] for row in sorted(rows, key=lambda row: row[0])]
