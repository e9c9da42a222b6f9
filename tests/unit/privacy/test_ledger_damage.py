"""Tests that a damaged or foreign ledger is refused with a reason, and never treated as empty."""

import random
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted_writes import interrupt_write

from fedsvd.errors import LedgerError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger

BUDGET = Budget(100.0, 1e-5, 100.0, 1e-5, "rdp")
HISTORY = [Spend(1.0 + number / 7, 0.05, 5 + number) for number in range(6)]


@pytest.fixture(scope="module")
def ledger_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("undamaged") / "ledger"
    with Ledger.open(path, "data") as ledger:
        for number, spend in enumerate(HISTORY[:2]):
            ledger.reserve("run", number, f"message {number}", spend, BUDGET)
            ledger.mark_released(f"message {number}")
    with Ledger.open(path, "grown data") as ledger:
        for number, spend in enumerate(HISTORY[2:], 2):
            ledger.reserve("run", number, f"message {number}", spend, BUDGET)
            ledger.mark_released(f"message {number}")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, ledger_bytes: bytes) -> Path:
    (tmp_path / "ledger").write_bytes(ledger_bytes)
    return tmp_path / "ledger"


def open_and_read(path: Path) -> list[Spend]:
    with Ledger.open(path, "data") as ledger:
        return ledger.history()


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def assert_refused(path: Path, message: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    for open_function in (open_and_read, Ledger.read):
        with pytest.raises(LedgerError, match=message):
            open_function(path)
    assert before is None or path.read_bytes() == before


def test_undamaged_ledger_opens(path: Path) -> None:
    assert open_and_read(path) == HISTORY


@pytest.mark.parametrize("length", [0, 1, 100, 4095, 4096, 8192, -4096, -1])
def test_truncated_ledger_is_refused(path: Path, ledger_bytes: bytes, length: int) -> None:
    path.write_bytes(ledger_bytes[:length])

    assert_refused(path, "cannot be used")


@pytest.mark.parametrize("size", [1, 100, 4096, 20480])
def test_random_bytes_are_refused(path: Path, size: int) -> None:
    path.write_bytes(random.Random(size).randbytes(size))

    assert_refused(path, "do not delete it")


def test_inverted_page_is_refused(path: Path, ledger_bytes: bytes) -> None:
    num_refused = 0
    for start in range(0, len(ledger_bytes), 4096):
        page = bytes(byte ^ 0xFF for byte in ledger_bytes[start : start + 4096])
        path.write_bytes(ledger_bytes[:start] + page + ledger_bytes[start + 4096 :])
        with pytest.raises(LedgerError, match="cannot be used"):
            open_and_read(path)
        num_refused += 1
    assert num_refused >= 4


def test_flipped_bit_is_detected_or_changes_no_spend(path: Path, ledger_bytes: bytes) -> None:
    num_detected = 0
    nonzero_offsets = [offset for offset, byte in enumerate(ledger_bytes) if byte]
    for offset in random.Random(0).sample(nonzero_offsets, 400):
        path.write_bytes(
            ledger_bytes[:offset] + bytes([ledger_bytes[offset] ^ (1 << offset % 8)]) + ledger_bytes[offset + 1 :]
        )
        try:
            assert open_and_read(path) == HISTORY
        except LedgerError:
            num_detected += 1
    assert num_detected > 200


@pytest.mark.parametrize("table", ["spend", "release", "owner", "event"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 100"])
def test_rows_cannot_be_changed_or_removed(path: Path, table: str, change: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        edit(path, change.format(table))
    assert open_and_read(path) == HISTORY


def _edit_without_triggers(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    connection.close()
    edit(path, *(f"DROP TRIGGER {name}" for name, _ in triggers), *statements, *(sql for _, sql in triggers))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE spend SET noise_multiplier = 9 WHERE id = 2",
        "UPDATE spend SET steps = 1 WHERE id = 6",
        "UPDATE owner SET created_at = 'long ago'",
        "DELETE FROM spend WHERE id = 3",
        "INSERT INTO owner VALUES ('data', 'now')",
        "DELETE FROM event",
        "UPDATE event SET kind = 'account'",
        "UPDATE event SET old_fingerprint = 'grown data'",
        "UPDATE event SET after_spend = 3",
        "INSERT INTO event SELECT 2, 2, 'account', 'grown data', '', 'mine', recorded_at, digest FROM event",
    ],
)
def test_row_changed_without_triggers_breaks_the_chain(path: Path, change: str) -> None:
    _edit_without_triggers(path, change)

    assert_refused(path, "has been changed|owners instead of one")


def test_missing_trigger_is_refused(path: Path) -> None:
    edit(path, "DROP TRIGGER spend_keeps_every_row_from_delete")

    assert_refused(path, "triggers have been changed")


def test_strict_ledger_of_other_data_is_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match=r"belongs to other data.* separate ledger"):
        Ledger.open(path, "others", strict=True)
    with Ledger.read(path) as ledger:
        assert ledger.fingerprint == "grown data"


def test_foreign_database_is_refused(tmp_path: Path) -> None:
    edit(tmp_path / "other", "CREATE TABLE spend (what TEXT)")

    assert_refused(tmp_path / "other", "not a fedsvd ledger")


def test_newer_schema_is_refused(path: Path) -> None:
    edit(path, "PRAGMA user_version=3")

    assert_refused(path, "newer fedsvd.* Update fedsvd")


def test_world_writable_ledger_is_refused(path: Path) -> None:
    path.chmod(0o666)

    assert_refused(path, "chmod 600")


def test_new_ledger_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["ledger"]


@pytest.mark.parametrize("make_unusable", [lambda path: path.mkdir(), lambda path: path.with_name("l-journal").touch()])
def test_unusable_path_is_refused(tmp_path: Path, make_unusable: Callable[[Path], None]) -> None:
    make_unusable(tmp_path / "l")

    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(tmp_path / "l", "data")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(Path("/proc/nowhere/ledger"), "data")


def test_reading_creates_no_file(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no privacy ledger at"):
        Ledger.read(tmp_path / "ledger")
    assert list(tmp_path.iterdir()) == []


def test_read_only_ledger_cannot_be_charged(path: Path) -> None:
    with Ledger.read(path) as ledger, pytest.raises(LedgerError, match="readonly"):
        ledger.reserve("run", 9, "message 9", HISTORY[0], BUDGET)


def test_interrupted_write_is_rolled_back_by_the_client_but_not_by_a_reader(path: Path, tmp_path: Path) -> None:
    interrupted = interrupt_write(path, tmp_path / "interrupted")

    with pytest.raises(LedgerError, match="unfinished write"):
        Ledger.read(interrupted)
    assert open_and_read(interrupted) == HISTORY
    with Ledger.read(interrupted) as ledger:
        assert ledger.history() == HISTORY


def test_a_charge_to_a_ledger_that_was_changed_after_it_was_opened_is_refused(path: Path) -> None:
    with Ledger.open(path, "grown data") as ledger:
        _edit_without_triggers(path, "UPDATE spend SET steps = 1 WHERE id = 6")
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="has been changed"):
            ledger.reserve("run", 7, "message 7", HISTORY[0], BUDGET)
        assert path.read_bytes() == before


def test_a_charge_is_on_the_disk_when_it_returns(path: Path) -> None:
    with Ledger.open(path, "grown data") as ledger:
        settings = [
            ledger._connection.execute(f"PRAGMA {key}").fetchone()[0] for key in ("synchronous", "journal_mode")
        ]
    # 3 is EXTRA: the directory is synchronized, too, after the journal is deleted.
    assert settings == [3, "delete"]
