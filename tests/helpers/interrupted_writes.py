"""Ledgers whose client was killed in the middle of a write."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path


def interrupt_write(
    ledger: Path, folder: Path, write: Callable[[sqlite3.Connection], object] = lambda connection: None
) -> Path:
    """Copy a ledger and its journal within a transaction, which has reached the file; return the copy.

    Args:
        ledger: The ledger, which stays as it was.
        folder: The directory of the copy; created.
        write: The first of the transaction's statements.
    """
    connection = sqlite3.connect(ledger, isolation_level=None)
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN IMMEDIATE")
    write(connection)
    for number in range(200):
        connection.execute(f"INSERT INTO owner VALUES ('{'x' * 3000}', '{number}')")
    folder.mkdir()
    for name in (ledger.name, f"{ledger.name}-journal"):
        shutil.copy(ledger.with_name(name), folder / name)
    connection.execute("ROLLBACK")
    connection.close()
    return folder / ledger.name
