"""Tests of the ledger: it never under-counts, never exceeds its budget, and charges each message once."""

import multiprocessing
import re
from pathlib import Path

import pytest
from ledger_charges import DELTA, SPEND, epsilon_of

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget, Ledger


def reserve(
    ledger: Ledger, message_id: str, spend: Spend = SPEND, target_epsilon: float = 100.0, run_id: str = "run"
) -> float:
    return ledger.reserve(run_id, 1, message_id, spend, Budget(target_epsilon, DELTA, target_epsilon, DELTA, "rdp"))


def test_spends_add_up_and_persist(tmp_path: Path) -> None:
    path = tmp_path / "private" / "ledger.sqlite"
    with Ledger.open(path, "data") as ledger:
        first = reserve(ledger, "a")
    with Ledger.open(path, "data") as ledger:
        second = reserve(ledger, "b")
        assert ledger.history() == [SPEND, SPEND]
        assert [entry.message_id for entry in ledger.entries()] == ["a", "b"]
        assert ledger.entries()[0].reserved_at.endswith("+00:00")
    assert (first, second) == (epsilon_of(1), epsilon_of(2))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("run_id", ["run", "another run"])
def test_replayed_message_is_refused_whether_or_not_its_result_was_released(
    tmp_path: Path, released: bool, run_id: str
) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        reserve(ledger, "a")
        if released:
            ledger.mark_released("a")
        for spend in (SPEND, Spend(1.0, 0.05, 6)):
            with pytest.raises(ReplayedMessageError, match="a charge pays for one result"):
                reserve(ledger, "a", spend, run_id=run_id)
        assert ledger.history() == [SPEND]


def test_result_is_released_once_and_only_if_charged(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        reserve(ledger, "a")
        reserve(ledger, "b")
        ledger.mark_released("b")

        assert [entry.released_at is None for entry in ledger.entries()] == [True, False]
        with pytest.raises(LedgerError, match="a second time"):
            ledger.mark_released("b")
        with pytest.raises(LedgerError, match="never charged"):
            ledger.mark_released("c")
        assert [entry.released_at is None for entry in ledger.entries()] == [True, False]


def test_each_run_and_all_runs_together_have_separate_budgets(tmp_path: Path) -> None:
    budget = Budget(epsilon_of(2), DELTA, epsilon([SPEND] * 3, 1e-3, "rdp"), 1e-3, "rdp")
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        for number in (1, 2):
            assert ledger.reserve("one", number, f"one {number}", SPEND, budget) == epsilon_of(number)
        with pytest.raises(BudgetExceededError, match="the ε of this run"):
            ledger.reserve("one", 3, "one 3", SPEND, budget)
        assert ledger.reserve("two", 1, "two 1", SPEND, budget) == epsilon_of(3)
        with pytest.raises(BudgetExceededError, match=r"the ε of all charges .* at δ = 0\.001"):
            ledger.reserve("two", 2, "two 2", SPEND, budget)
        assert ledger.entries()[0].budget == budget


def test_budget_may_be_reached_but_not_exceeded(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        for number in range(3):
            reserve(ledger, str(number), target_epsilon=epsilon_of(3))
        with pytest.raises(BudgetExceededError, match="this client allows") as refusal:
            reserve(ledger, "one too many", target_epsilon=epsilon_of(3))
        stated = re.findall(r"from ([\d.]+) to ([\d.]+) at", str(refusal.value))[0]
        exact = (epsilon_of(3), epsilon_of(4))
        assert all(0 <= float(text) - value <= 1e-3 for text, value in zip(stated, exact, strict=True))
        assert len(ledger.history()) == 3


def test_account_of_a_run_is_charged_once(tmp_path: Path) -> None:
    budget = Budget(epsilon_of(1), DELTA, epsilon_of(2), DELTA, "rdp")
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        assert ledger.reserve_run("one", SPEND, budget) == ledger.reserve_run("one", SPEND, budget) == epsilon_of(1)
        with pytest.raises(LedgerError, match="already charged"):
            ledger.reserve_run("one", Spend(1.0, 0.05, 6), budget)
        assert ledger.reserve_run("two", SPEND, budget) == epsilon_of(2)
        with pytest.raises(BudgetExceededError):
            ledger.reserve_run("three", SPEND, budget)
        assert [(entry.run_id, entry.released_at is None) for entry in ledger.entries()] == [
            ("one", False),
            ("two", False),
        ]


def _charge_until_refused(path: str, name: str) -> int:
    spent = 0
    with Ledger.open(Path(path), "data") as ledger:
        for number in range(8):
            try:
                reserve(ledger, f"{name}-{number}", target_epsilon=epsilon_of(9))
                spent += 1
            except BudgetExceededError:
                pass
    return spent


@pytest.mark.slow
def test_two_processes_on_one_ledger_never_exceed_the_budget(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        spent = pool.starmap(_charge_until_refused, [(str(tmp_path / "ledger"), name) for name in "ab"])

    assert sum(spent) == 9
    with Ledger.open(tmp_path / "ledger", "data") as ledger:
        assert len(ledger.history()) == 9
