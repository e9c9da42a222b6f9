"""Tests of data that change, and of new accounts."""

import ast
from pathlib import Path

import pytest
from ledger_charges import DELTA, SPEND, epsilon_of

from fedsvd.errors import BudgetExceededError, LedgerError, ReplayedMessageError
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.privacy.ledger_accounts import SERVER_FINGERPRINT, open_account

ROOT = Path(__file__).parents[3]


def budget(charges: int = 100) -> Budget:
    return Budget(epsilon_of(charges), DELTA, epsilon_of(charges), DELTA, "rdp")


def reserve(path: Path, data: str, message: str, charges: int = 100, *, strict: bool = False) -> float:
    with Ledger.open(path, data, strict=strict) as ledger:
        return ledger.reserve("run", 1, message, SPEND, budget(charges))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


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
