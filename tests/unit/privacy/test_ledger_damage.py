"""A ledger that is damaged, another's, or no ledger at all stops the client and says why; none is taken for empty."""

import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsvd.errors import LedgerError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger

BUDGET = Budget(100.0, 1e-5, 100.0, 1e-5, "rdp")
HISTORY = [Spend(1.0 + number / 7, 0.05, 5 + number) for number in range(6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "ledger"
    with Ledger.open(path, "data") as ledger:
        for number, spend in enumerate(HISTORY):
            ledger.reserve("run", number, f"message {number}", spend, BUDGET)
            ledger.mark_released(f"message {number}")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    (tmp_path / "ledger").write_bytes(whole)
    return tmp_path / "ledger"


def opened(path: Path) -> list[Spend]:
    with Ledger.open(path, "data") as ledger:
        return ledger.history()


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def assert_refused(path: Path, said: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    for open_it in (opened, Ledger.read):
        with pytest.raises(LedgerError, match=said):
            open_it(path)
    assert before is None or path.read_bytes() == before


def test_a_whole_one_opens(path: Path) -> None:
    assert opened(path) == HISTORY


@pytest.mark.parametrize("kept", [0, 1, 100, 4095, 4096, 8192, -4096, -1])
def test_a_truncated_ledger(path: Path, whole: bytes, kept: int) -> None:
    path.write_bytes(whole[:kept])

    assert_refused(path, "cannot be used")


@pytest.mark.parametrize("size", [1, 100, 4096, 20480])
def test_random_bytes(path: Path, size: int) -> None:
    path.write_bytes(random.Random(size).randbytes(size))

    assert_refused(path, "do not delete it")


def test_a_flipped_page(path: Path, whole: bytes) -> None:
    refused = 0
    for start in range(0, len(whole), 4096):
        page = bytes(byte ^ 0xFF for byte in whole[start : start + 4096])
        path.write_bytes(whole[:start] + page + whole[start + 4096 :])
        with pytest.raises(LedgerError, match="cannot be used"):
            opened(path)
        refused += 1
    assert refused >= 4


def test_a_flipped_bit_is_found_or_changes_no_spend(path: Path, whole: bytes) -> None:
    found = 0
    used = [offset for offset, byte in enumerate(whole) if byte]
    for offset in random.Random(0).sample(used, 400):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ (1 << offset % 8)]) + whole[offset + 1 :])
        try:
            assert opened(path) == HISTORY
        except LedgerError:
            found += 1
    assert found > 200


@pytest.mark.parametrize("table", ["spend", "release", "owner"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 100"])
def test_rows_cannot_be_changed_or_removed(path: Path, table: str, change: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        edit(path, change.format(table))
    assert opened(path) == HISTORY


def _without_guards(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    connection.close()
    edit(path, *(f"DROP TRIGGER {name}" for name, _ in guards), *statements, *(sql for _, sql in guards))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE spend SET noise_multiplier = 9 WHERE id = 2",
        "UPDATE spend SET steps = 1 WHERE id = 6",
        "UPDATE owner SET created_at = 'long ago'",
        "DELETE FROM spend WHERE id = 3",
        "INSERT INTO owner VALUES ('data', 'now')",
    ],
)
def test_a_row_changed_behind_the_guards_breaks_the_chain(path: Path, change: str) -> None:
    _without_guards(path, change)

    assert_refused(path, "not what was written|owners instead of one")


def test_guards_that_are_gone(path: Path) -> None:
    edit(path, "DROP TRIGGER spend_keeps_every_row_from_delete")

    assert_refused(path, "guards have been changed")


def test_another_data_s_ledger(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"other data .* ledger of its own"):
        Ledger.open(path, "others")
    with Ledger.read(path) as ledger:
        assert ledger.fingerprint == "data"


def test_another_program_s_database(tmp_path: Path) -> None:
    edit(tmp_path / "other", "CREATE TABLE spend (what TEXT)")

    assert_refused(tmp_path / "other", "no ledger of fedsvd")


def test_a_newer_schema(path: Path) -> None:
    edit(path, "PRAGMA user_version=2")

    assert_refused(path, "newer fedsvd .* update this one")


def test_a_ledger_that_everybody_may_write(path: Path) -> None:
    path.chmod(0o666)

    assert_refused(path, "chmod 600")


def test_a_new_one_is_its_owner_s_alone(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["ledger"]


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(), lambda path: path.with_name("l-journal").touch()])
def test_a_place_that_cannot_hold_a_ledger(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "l")

    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(tmp_path / "l", "data")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(Path("/proc/nowhere/ledger"), "data")


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no privacy ledger"):
        Ledger.read(tmp_path / "ledger")
    assert list(tmp_path.iterdir()) == []


def test_what_is_open_for_reading_cannot_be_charged(path: Path) -> None:
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match="readonly"):
        ledger.reserve("run", 9, "message 9", HISTORY[0], BUDGET)


def test_a_write_that_was_cut_off_is_undone_by_the_client_and_not_by_a_reader(path: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(200):
        connection.execute(f"INSERT INTO owner VALUES ('{'x' * 3000}', '{number}')")
    (tmp_path / "cut").mkdir()
    for name in ("ledger", "ledger-journal"):
        shutil.copy(tmp_path / name, tmp_path / "cut" / name)
    connection.execute("ROLLBACK")
    connection.close()

    with pytest.raises(LedgerError, match="was cut off"):
        Ledger.read(tmp_path / "cut" / "ledger")
    assert opened(tmp_path / "cut" / "ledger") == HISTORY
    with Ledger.read(tmp_path / "cut" / "ledger") as ledger:
        assert ledger.history() == HISTORY
