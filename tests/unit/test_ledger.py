"""The ledger never under-counts, never exceeds its budget, and knows its own."""

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvd.errors import BudgetExceededError, LedgerError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Ledger

SPEND = Spend(1.0, 0.05, 5)
DELTA = 1e-5


def budget_of(count: int) -> float:
    return epsilon([SPEND] * count, DELTA, "rdp")


def reserve(ledger: Ledger, message_id: str, spend: Spend = SPEND, target_epsilon: float = 100.0) -> float:
    return ledger.reserve(
        "run", 1, message_id, spend, target_epsilon=target_epsilon, target_delta=DELTA, accountant="rdp"
    )


def test_spends_add_up_and_outlive_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "private" / "ledger.sqlite"
    with Ledger.open(path, "data") as ledger:
        first = reserve(ledger, "a")
    with Ledger.open(path, "data") as ledger:
        second = reserve(ledger, "b")
        assert ledger.history() == [SPEND, SPEND]
        assert [entry.message_id for entry in ledger.entries()] == ["a", "b"]
        assert ledger.entries()[0].reserved_at.endswith("+00:00")
    assert (first, second) == (budget_of(1), budget_of(2))


def test_a_replayed_message_is_charged_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        assert reserve(ledger, "a") == reserve(ledger, "a") == budget_of(1)
        assert len(ledger.history()) == 1


def test_a_replayed_message_with_another_spend_is_refused(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        reserve(ledger, "a")
        with pytest.raises(LedgerError, match="charged"):
            reserve(ledger, "a", Spend(1.0, 0.05, 6))


def test_the_budget_may_be_met_but_not_exceeded(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        for number in range(3):
            reserve(ledger, str(number), target_epsilon=budget_of(3))
        with pytest.raises(BudgetExceededError, match="this client allows"):
            reserve(ledger, "one too many", target_epsilon=budget_of(3))
        assert len(ledger.history()) == 3


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o600


def test_another_data_s_ledger_is_refused(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        pass
    with pytest.raises(LedgerError, match="other data"):
        Ledger.open(tmp_path / "ledger", "others")


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to look at" * 100, b"SQLite format 3\x00torn"]
)
def test_a_damaged_ledger_stops_the_client(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger").write_bytes(content)
    with pytest.raises(LedgerError, match="Restore it"):
        Ledger.open(tmp_path / "ledger", "data")


def test_another_program_s_database_stops_the_client(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger")
    connection.execute("CREATE TABLE spend (what TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(tmp_path / "ledger", "data")


def _spend_all(path: str, name: str) -> int:
    spent = 0
    with Ledger.open(Path(path), "data") as ledger:
        for number in range(8):
            try:
                reserve(ledger, f"{name}-{number}", target_epsilon=budget_of(9))
                spent += 1
            except BudgetExceededError:
                pass
    return spent


@pytest.mark.slow
def test_two_processes_on_one_ledger_never_exceed_the_budget(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        spent = pool.starmap(_spend_all, [(str(tmp_path / "ledger"), name) for name in "ab"])

    assert sum(spent) == 9
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        assert len(ledger.history()) == 9


KILLED = """
import os, signal, sys
from pathlib import Path
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]), "data")
ledger.reserve("run", 1, "m", Spend(1.0, 0.05, 5), target_epsilon=100, target_delta=1e-5, accountant="rdp")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_spend_is_on_disk_before_reserve_returns(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "ledger")], check=False, env=dict(os.environ)
    )

    assert process.returncode == -signal.SIGKILL
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        assert ledger.history() == [SPEND]
