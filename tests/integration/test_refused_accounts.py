"""Commands that end with an error open no account in a ledger."""

from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger

SPEND = Spend(5.0, 1.0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def new_account(path: Path, *options: str) -> int:
    return main(["privacy", "ledger", str(path), "--new-account", "other people", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["accountant=PRV"], "accountant = 'PRV' is unknown: expected one of prv, rdp"),
        # Valid for rdp, but the last charge names prv.
        (["target_delta=1e-12"], "too small for the prv accountant"),
        (["target_delta=1e-12", "accountant=prv"], "too small for the prv accountant"),
    ],
)
def test_a_refused_command_opens_no_account(
    path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(path, "data") as ledger:
        ledger.reserve("run", 1, "message", SPEND, Budget(3.0, 1e-5, 3.0, 1e-5, "prv"))
    content = path.read_bytes()

    assert new_account(path, *options) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert path.read_bytes() == content

    # The corrected command opens account 2, not 3.
    assert new_account(path, "accountant=rdp", "target_delta=1e-12") == 0
    assert "0 charges of account 2; ε = 0.000 at δ = 1e-12" in capsys.readouterr().out


def test_a_last_charge_that_cannot_be_shown_opens_no_account(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(path, "data") as ledger:
        ledger.reserve("run", 1, "message", SPEND, Budget(3.0, 1e-5, 3.0, 1e-5, "prv"))
    monkeypatch.setattr("fedsvd.privacy.accounting.ACCOUNTANTS", ("rdp",))

    assert new_account(path) == 1
    assert "accountant = 'prv' is unknown" in capsys.readouterr().err
    with Ledger.read(path) as ledger:
        assert ledger.state().account == 1
    assert new_account(path, "accountant=rdp") == 0


def test_an_unknown_accountant_is_refused_for_an_empty_ledger(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(path, "data"):
        pass

    assert new_account(path, "accountant=pld") == 1
    assert "accountant = 'pld' is unknown" in capsys.readouterr().err
    with Ledger.read(path) as ledger:
        assert ledger.state().account == 1
