"""Creating, opening and locking the ledger file; `fedsvd.privacy.ledger` defines the meaning of its contents.

The ledger uses a rollback journal and ``synchronous=EXTRA``: a commit returns only after the folder that contained the
journal has been synced to disk, too. With ``FULL``, a power failure could restore the journal, and with it the state
before the charge. A write-ahead log would store charges in a second file, which a copy of the first file lacks, and
requires memory shared between all processes, which processes in two containers do not have.
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

_LOCK_TIMEOUT_S = 60.0


def connect(path: Path, fingerprint: str) -> sqlite3.Connection:
    """Open a ledger for writing, or create it if it does not exist, and check it completely.

    Raises:
        LedgerError: As for `fedsvd.privacy.ledger.Ledger.open`.
    """
    with as_ledger_error(path):
        if not path.exists():
            _create(path, fingerprint)
        connection = _open(path, "rw")
    try:
        with as_ledger_error(path):
            schema.check(connection, path)
            _make_durable(connection)
            [owner] = connection.execute("SELECT fingerprint FROM owner").fetchone()
    except BaseException:
        connection.close()
        raise
    if owner != fingerprint:
        connection.close()
        raise LedgerError(
            f"the privacy ledger {path} belongs to other data: its fingerprint is {owner[:12]}…, that of this data is "
            f"{fingerprint[:12]}…. Use a separate ledger for this data."
        )
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger read-only, and check it completely.

    Raises:
        LedgerError: As for `fedsvd.privacy.ledger.Ledger.read`.
    """
    if not path.is_file():
        raise LedgerError(f"no privacy ledger at {path}; pass the path of a ledger, such as clients/0.sqlite.")
    with as_ledger_error(path):
        connection = _open(path, "ro")
        try:
            schema.check(connection, path)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and _journal(path).exists():
                raise LedgerError(
                    f"the privacy ledger {path} has an unfinished write, because its client was interrupted. The "
                    f"client's next round rolls it back, and needs {_journal(path).name} to do so; do not delete that "
                    "file. Until then, the ledger cannot be shown."
                ) from error
            raise
    return connection


@contextmanager
def as_ledger_error(path: Path) -> Iterator[None]:
    """Convert errors of SQLite and of the file system into a `LedgerError` that says what to do."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        raise LedgerError(
            f"the privacy ledger {path} cannot be used ({error}). Restore it from a backup; do not delete it, because "
            "the privacy budget that it records has been spent."
        ) from error


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Lock the ledger exclusively for writing, check its rows, and commit atomically.

    Raises:
        LedgerError: The ledger is damaged, or cannot be written.
    """
    with as_ledger_error(path):
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
    # The mode must not allow creation: a ledger that was deleted must not be replaced by an empty one.
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)


def _make_durable(connection: sqlite3.Connection) -> None:
    [mode] = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    if mode != "delete":
        raise sqlite3.OperationalError(f"its journal mode {mode} cannot be changed to delete")
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("PRAGMA fullfsync=ON")
    connection.execute("PRAGMA foreign_keys=ON")


def _create(path: Path, fingerprint: str) -> None:
    """Create the ledger under a temporary name and link it into place atomically.

    An empty or incomplete file at ``path`` is therefore always a damaged ledger.
    """
    if _journal(path).exists() and not path.exists():
        raise OSError("its journal exists, but the ledger itself is missing")
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
        # If another process created the ledger first, that one is used.
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
