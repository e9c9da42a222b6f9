"""Tests of ledgers of the first schema version: they open as they are, and their first write migrates them."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from interrupted_writes import interrupt_write
from ledger_charges import DELTA, SPEND, epsilon_of
from ledger_v1 import schema_version, write_ledger_v1

from fedsvd.errors import BudgetExceededError, LedgerError
from fedsvd.privacy import ledger_schema
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.privacy.ledger_accounts import open_account


def reserve(path: Path, data: str, message: str, charges: int = 100) -> float:
    limit = epsilon_of(charges)
    with Ledger.open(path, data) as ledger:
        return ledger.reserve("run", 1, message, SPEND, Budget(limit, DELTA, limit, DELTA, "rdp"))


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    write_ledger_v1(tmp_path / "ledger", "january", [SPEND, SPEND])
    return tmp_path / "ledger"


def test_ledger_of_version_1_is_read_and_opened_without_changing_it(v1: Path) -> None:
    content = v1.read_bytes()
    with Ledger.read(v1) as ledger:
        assert ledger.history() == [SPEND, SPEND]
        assert (ledger.fingerprint, ledger.state().account) == ("january", 1)
    with Ledger.open(v1, "february") as ledger:
        assert len(ledger.entries()) == 2
    with pytest.raises(BudgetExceededError):
        reserve(v1, "february", "a", charges=2)
    assert v1.read_bytes() == content


@pytest.mark.parametrize("data", ["january", "february"])
def test_first_write_migrates_a_ledger_of_version_1(v1: Path, data: str) -> None:
    assert reserve(v1, data, "a") == epsilon_of(3)

    assert schema_version(v1) == ledger_schema.SCHEMA_VERSION == 2
    with Ledger.open(v1, data, strict=True) as ledger:
        ledger.mark_released("a")
        assert [entry.message_id for entry in ledger.entries()] == ["v1 0", "v1 1", "a"]
        assert len(ledger.state().events) == (data != "january")
    with sqlite3.connect(v1) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM spend")


def test_new_account_in_a_ledger_of_version_1(v1: Path) -> None:
    assert open_account(v1, "other people") == 2
    assert reserve(v1, "others", "a") == epsilon_of(1)
    assert schema_version(v1) == 2


def test_damaged_ledger_of_version_1_is_refused(v1: Path) -> None:
    with sqlite3.connect(v1) as connection:
        [sql] = connection.execute("SELECT sql FROM sqlite_master WHERE name LIKE 'spend%update'").fetchone()
        connection.execute("DROP TRIGGER spend_keeps_every_row_from_update")
        connection.execute("UPDATE spend SET steps = 1 WHERE id = 1")
        connection.execute(sql)
    connection.close()
    for open_function in (Ledger.read, lambda file: Ledger.open(file, "january")):
        with pytest.raises(LedgerError, match="has been changed"):
            open_function(v1)


def test_interrupted_migration_leaves_the_old_ledger(v1: Path, tmp_path: Path) -> None:
    interrupted = interrupt_write(v1, tmp_path / "interrupted", ledger_schema.migrate)

    with pytest.raises(LedgerError, match="unfinished write"):
        Ledger.read(interrupted)
    with Ledger.open(interrupted, "january") as ledger:
        assert ledger.history() == [SPEND, SPEND]
    assert schema_version(interrupted) == 1
    assert reserve(interrupted, "january", "a") == epsilon_of(3)


def _charge_until_refused(path: str, name: str) -> int:
    spent = 0
    for number in range(10):
        try:
            reserve(Path(path), f"data {name}", f"{name}-{number}", charges=9)
            spent += 1
        except BudgetExceededError:
            pass
    return spent


@pytest.mark.slow
def test_two_processes_with_different_data_migrate_once_and_never_exceed_the_budget(v1: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        spent = pool.starmap(_charge_until_refused, [(str(v1), name) for name in "ab"])

    with Ledger.read(v1) as ledger:
        state = ledger.state()
    # Per run, 9 charges fit; the two charges of version 1 belong to another run but to the same account.
    assert sum(spent) + 2 == len(state.counting) == 9
    assert schema_version(v1) == 2
