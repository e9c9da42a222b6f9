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
from fedsvd.runs.folder import fsync_path
from fedsvd.runs.record import utc_now

_LOCK_TIMEOUT_S = 60.0


def connect(path: Path, fingerprint: str | None) -> sqlite3.Connection:
    """Open a ledger for writing and check it completely; if it does not exist, create it for the data.

    Raises:
        LedgerError: As for `fedsvd.privacy.ledger.Ledger.open`; or the ledger does not exist and there is no
            fingerprint to create it for.
    """
    if fingerprint is None:
        _check_exists(path)
    with as_ledger_error(path):
        if fingerprint is not None and not path.exists():
            _create(path, fingerprint)
        connection = _open(path, "rw")
    try:
        with as_ledger_error(path):
            schema.check(connection, path)
            _make_durable(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger read-only, and check it completely.

    Raises:
        LedgerError: As for `fedsvd.privacy.ledger.Ledger.read`.
    """
    _check_exists(path)
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

    A ledger of an earlier schema version is migrated in the same transaction.

    Raises:
        LedgerError: The ledger is damaged, or cannot be written.
    """
    with as_ledger_error(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            schema.check_rows(connection)
            schema.migrate(connection)
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def snapshot(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Read one consistent state of the ledger, whether or not a transaction is in progress.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    is_nested = connection.in_transaction
    with as_ledger_error(path):
        if not is_nested:
            connection.execute("BEGIN")
        try:
            yield
        finally:
            if not is_nested and connection.in_transaction:
                connection.execute("ROLLBACK")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise LedgerError(f"no privacy ledger at {path}; pass the path of a ledger, such as clients/0.sqlite.")


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
            for statement in schema.STATEMENTS:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION}")
            connection.execute("INSERT INTO owner VALUES (?, ?)", (fingerprint, utc_now()))
            connection.execute("COMMIT")
        # If another process created the ledger first, that one is used.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    for folder in (path.parent, *(folder.parent for folder in missing)):
        fsync_path(folder)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")
