"""Tests of data that change, of new accounts, and of ledgers of the first schema version."""

import ast
import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import pytest
from ledger_v1 import schema_version, write_ledger_v1

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy import ledger_schema
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.privacy.ledger_accounts import SERVER_FINGERPRINT, open_account

SPEND, DELTA = Spend(1.0, 0.05, 5), 1e-5
ROOT = Path(__file__).parents[3]


def epsilon_of(count: int) -> float:
    return epsilon([SPEND] * count, DELTA, "rdp")


def budget(charges: int = 100) -> Budget:
    return Budget(epsilon_of(charges), DELTA, epsilon_of(charges), DELTA, "rdp")


def reserve(path: Path, data: str, message: str, charges: int = 100, *, strict: bool = False) -> float:
    with Ledger.open(path, data, strict=strict) as ledger:
        return ledger.reserve("run", 1, message, SPEND, budget(charges))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def v1(path: Path) -> Path:
    write_ledger_v1(path, "january", [SPEND, SPEND])
    return path


def test_earlier_spends_count_against_changed_data_and_the_change_is_recorded(path: Path) -> None:
    epsilons = [reserve(path, data, str(n)) for n, data in enumerate(["january", "february", "february", "january"])]

    assert epsilons == [epsilon_of(count) for count in (1, 2, 3, 4)]
    with Ledger.read(path) as ledger:
        state = ledger.state()
        assert ledger.history() == [SPEND] * 4
    changes = [(e.charges_before, e.kind, e.old_fingerprint, e.new_fingerprint) for e in state.events]
    assert changes == [(1, "data", "january", "february"), (3, "data", "february", "january")]
    assert all(event.recorded_at.endswith("+00:00") for event in state.events)
    assert [entry.fingerprint for entry in state.entries] == ["january", "february", "february", "january"]


def test_refused_charge_records_no_change(path: Path) -> None:
    reserve(path, "january", "a")
    for message, charges, error in (("a", 100, ReplayedMessageError), ("b", 1, BudgetExceededError)):
        with pytest.raises(error):
            reserve(path, "february", message, charges)
    with Ledger.read(path) as ledger:
        assert ledger.state().events == ()
        assert ledger.fingerprint == "january"


def test_exceeded_budget_names_the_charges_on_other_data_and_the_remedy(path: Path) -> None:
    reserve(path, "january", "a")
    reserve(path, "february", "b")
    with Ledger.open(path, "february") as ledger:
        with pytest.raises(BudgetExceededError, match=r"1 of the 2 earlier charges were made on other.*--new-account"):
            ledger.reserve("another run", 1, "c", SPEND, budget(2))
        with pytest.raises(BudgetExceededError) as raised:
            ledger.reserve("run", 1, "c", SPEND, budget(2))
    assert "--new-account" not in str(raised.value)


def test_strict_ledger_refuses_changed_data_also_if_they_change_while_it_is_open(path: Path) -> None:
    reserve(path, "january", "a", strict=True)
    with pytest.raises(LedgerError, match="belongs to other data"):
        reserve(path, "february", "b", strict=True)
    with Ledger.open(path, "january", strict=True) as ledger:
        reserve(path, "february", "b")
        with pytest.raises(LedgerError, match="belongs to other data"):
            ledger.reserve("run", 1, "c", SPEND, budget())
        assert len(ledger.entries()) == 2


def test_new_account_starts_at_zero_and_keeps_earlier_charges_on_record(path: Path) -> None:
    reserve(path, "public", "a", charges=1)
    with pytest.raises(BudgetExceededError):
        reserve(path, "own", "b", charges=1)

    assert open_account(path, "public data until now") == 2
    assert reserve(path, "own", "b", charges=1) == epsilon_of(1)
    with Ledger.read(path) as ledger:
        state = ledger.state()
        assert ledger.history() == [SPEND]
    assert [(entry.account, entry.fingerprint) for entry in state.entries] == [(1, "public"), (2, "own")]
    account, data = state.events
    assert (account.kind, account.reason, account.account) == ("account", "public data until now", 2)
    assert (data.kind, data.old_fingerprint, data.new_fingerprint) == ("data", "public", "own")
    with pytest.raises(ReplayedMessageError):
        reserve(path, "own", "a")
    with pytest.raises(BudgetExceededError):
        reserve(path, "own", "c", charges=1)


@pytest.mark.parametrize("strict", [False, True])
def test_new_account_refuses_data_of_an_earlier_account(path: Path, strict: bool) -> None:
    reserve(path, "january", "a")
    with Ledger.open(path, "january") as ledger:
        open_account(path, "other people")
        with pytest.raises(LedgerError, match="in an earlier account"):
            ledger.reserve("run", 1, "b", SPEND, budget())
    with pytest.raises(LedgerError, match="in an earlier account"):
        reserve(path, "january", "b", strict=strict)
    assert reserve(path, "others", "b", strict=strict) == epsilon_of(1)
    with pytest.raises(LedgerError, match="in an earlier account"):
        reserve(path, "january", "c", strict=strict)


def test_strict_ledger_is_bound_to_the_first_data_of_a_new_account(path: Path) -> None:
    reserve(path, "january", "a", strict=True)
    open_account(path, "others from now on")
    reserve(path, "others", "b", strict=True)
    with pytest.raises(LedgerError, match="belongs to other data"):
        reserve(path, "more", "c", strict=True)


def test_whole_run_covers_changed_data_but_not_a_new_account(path: Path) -> None:
    for data in ("january", "february"):
        with Ledger.open(path, data) as ledger:
            assert ledger.reserve_run("one run", SPEND, budget()) == epsilon_of(1)
    open_account(path, "other people")
    with Ledger.open(path, "others") as ledger:
        assert ledger.reserve_run("one run", SPEND, budget(1)) == epsilon_of(1)
        assert ledger.reserve_run("one run", SPEND, budget(1)) == epsilon_of(1)
        assert [(entry.account, entry.run_id) for entry in ledger.entries()] == [(1, "one run"), (2, "one run")]
        assert [event.kind for event in ledger.state().events] == ["data", "account", "data"]


def test_charge_of_a_round_does_not_pay_for_a_whole_run(path: Path) -> None:
    with Ledger.open(path, "january") as ledger:
        ledger.reserve("run", 1, "whole run x", SPEND, budget())
        with pytest.raises(LedgerError, match="UNIQUE"):
            ledger.reserve_run("x", SPEND, budget())


def test_account_is_opened_only_in_an_existing_ledger_of_a_client(path: Path) -> None:
    with pytest.raises(LedgerError, match="no privacy ledger at"):
        open_account(path, "reason")
    assert not path.exists()
    with Ledger.open(path, SERVER_FINGERPRINT, strict=True):
        pass
    with pytest.raises(LedgerError, match="clients of a run do not change"):
        open_account(path, "reason")


def test_only_the_command_line_can_open_an_account() -> None:
    users = set()
    for folder in ("fedsvd", "client", "server"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            if names & {"open_account", "NEW_ACCOUNT"}:
                users.add(file.relative_to(ROOT).as_posix())
    assert users == {
        "fedsvd/commands/privacy_ledger.py",
        "fedsvd/privacy/ledger_accounts.py",
        "fedsvd/privacy/ledger_entries.py",
        "fedsvd/privacy/ledger_schema.py",
    }


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
    connection = sqlite3.connect(v1, isolation_level=None)
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN IMMEDIATE")
    ledger_schema.migrate(connection)
    for number in range(200):
        connection.execute(f"INSERT INTO owner VALUES ('{'x' * 3000}', '{number}')")
    (tmp_path / "interrupted").mkdir()
    for name in ("ledger", "ledger-journal"):
        shutil.copy(tmp_path / name, tmp_path / "interrupted" / name)
    connection.execute("ROLLBACK")
    connection.close()

    with pytest.raises(LedgerError, match="unfinished write"):
        Ledger.read(tmp_path / "interrupted" / "ledger")
    with Ledger.open(tmp_path / "interrupted" / "ledger", "january") as ledger:
        assert ledger.history() == [SPEND, SPEND]
    assert schema_version(tmp_path / "interrupted" / "ledger") == 1
    assert reserve(tmp_path / "interrupted" / "ledger", "january", "a") == epsilon_of(3)


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
