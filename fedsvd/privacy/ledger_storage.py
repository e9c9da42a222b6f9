"""The ledger as a file: how it is made, opened, and found to be whole; `fedsvd.privacy.ledger` says what it means.

Rollback journal and ``synchronous=EXTRA``: a commit is over when the folder that held the journal is on disk too. With
``FULL`` a power cut could bring the journal back, and with it the state before the charge. A write-ahead log would put
charges into a second file, which a copy of the first lacks, and needs memory that processes of two containers share.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from fedsvd.errors import LedgerError
from fedsvd.privacy import ledger_schema as schema

_WAIT_S = 60.0


def connect(path: Path, fingerprint: str) -> sqlite3.Connection:
    """Open a ledger for writing, or start one where there is none, and check it whole.

    Raises:
        LedgerError: As `fedsvd.privacy.ledger.Ledger.open`.
    """
    with explained(path):
        if not path.exists():
            _create(path, fingerprint)
        connection = _open(path, "rw")
    try:
        with explained(path):
            schema.check(connection, path)
            _make_durable(connection)
            [owner] = connection.execute("SELECT fingerprint FROM owner").fetchone()
    except BaseException:
        connection.close()
        raise
    if owner != fingerprint:
        connection.close()
        raise LedgerError(
            f"the privacy ledger {path} keeps the account of other data (fingerprint {owner[:12]}…, this data has "
            f"{fingerprint[:12]}…). Give this data a ledger of its own."
        )
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger without the means to change it, and check it whole.

    Raises:
        LedgerError: There is none, or it is damaged or no ledger.
    """
    if not path.is_file():
        raise LedgerError(f"there is no privacy ledger at {path}; give the path of one, such as clients/0.sqlite.")
    with explained(path):
        connection = _open(path, "ro")
        try:
            schema.check(connection, path)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and _journal(path).exists():
                raise LedgerError(
                    f"the client of the privacy ledger {path} was cut off while writing it; its next round puts that "
                    f"right, and needs {_journal(path).name} for it. Until then the ledger cannot be shown."
                ) from error
            raise
    return connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into a `LedgerError` that says what to do."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        raise LedgerError(
            f"the privacy ledger {path} cannot be used ({error}). Restore it from a backup; do not delete it: "
            "what it recorded has been spent."
        ) from error


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Hold the ledger alone, see it whole, and write all or nothing.

    Raises:
        LedgerError: It is damaged, or cannot be written.
    """
    with explained(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            schema.check_rows(connection)
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _open(path: Path, mode: str) -> sqlite3.Connection:
    # A mode without "create": a ledger that vanishes must not come back empty.
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)


def _make_durable(connection: sqlite3.Connection) -> None:
    [mode] = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    if mode != "delete":
        raise sqlite3.OperationalError(f"its journal mode is {mode} and cannot be changed to delete")
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("PRAGMA fullfsync=ON")
    connection.execute("PRAGMA foreign_keys=ON")


def _create(path: Path, fingerprint: str) -> None:
    """Make the ledger elsewhere and link it into place whole, so that an empty or torn one is always a damaged one."""
    if _journal(path).exists() and not path.exists():
        raise OSError("its journal is there, but the ledger itself is gone")
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    temporary.touch(mode=0o600, exist_ok=False)
    try:
        with closing(_open(temporary, "rw")) as connection:
            _make_durable(connection)
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*schema.TABLES, *schema.TRIGGERS):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION}")
            connection.execute("INSERT INTO owner VALUES (?, ?)", (fingerprint, schema.now()))
            connection.execute("COMMIT")
        # Another process may have been first; then its ledger counts.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    for folder in (path.parent, *(folder.parent for folder in missing)):
        _sync_folder(folder)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
