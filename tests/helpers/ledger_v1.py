"""Ledgers as schema version 1 wrote them, from a frozen copy of its statements and digests."""

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fedsvd.privacy.accounting import Spend

_TABLES = (
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
_TRIGGERS = tuple(
    f"CREATE TRIGGER {table}_keeps_every_row_from_{event.lower()} BEFORE {event} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for table in ("owner", "spend", "release")
    for event in ("UPDATE", "DELETE")
)
TIME = "2025-01-02T03:04:05+00:00"


def write_ledger_v1(path: Path, fingerprint: str, spends: Sequence[Spend]) -> None:
    """Write a ledger with one charge and one released result per spend; message n is called ``v1 n``."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    for statement in (*_TABLES, *_TRIGGERS):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={int.from_bytes(b'fsvl')}")
    connection.execute("PRAGMA user_version=1")
    connection.execute("INSERT INTO owner VALUES (?, ?)", (fingerprint, TIME))
    previous = _digest("", (fingerprint, TIME))
    for number, spend in enumerate(spends):
        values = (
            "v1 run", 1 + number, f"v1 {number}", spend.noise_multiplier, spend.sample_rate, spend.steps,
            100.0, 1e-5, 100.0, 1e-5, "rdp", TIME,
        )  # fmt: skip
        previous = _digest(previous, values)
        connection.execute(
            "INSERT INTO spend VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, previous)
        )
        connection.execute("INSERT INTO release VALUES (last_insert_rowid(), ?)", (TIME,))
    connection.execute("COMMIT")
    connection.close()
    path.chmod(0o600)


def schema_version(path: Path) -> int:
    connection = sqlite3.connect(path)
    [version] = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


def _digest(previous: str, values: Sequence[object]) -> str:
    return hashlib.sha256("\x1f".join([previous, *map(repr, values)]).encode()).hexdigest()
