"""``fedsvd privacy ledger --new-account``: an account for data of other people."""

import re
from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget, Ledger

pytestmark = pytest.mark.slow


def test_new_account_is_shown_with_what_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spend, path = Spend(1.0, 0.05, 5), tmp_path / "[red]ledger"
    budget = Budget(9.0, 1e-5, 9.0, 1e-5, "rdp")
    for data, message in (("a" * 64, "1"), ("b" * 64, "2")):
        with Ledger.open(path, data) as ledger:
            ledger.reserve("run", 1, message, spend, budget)
    assert main(["privacy", "ledger", str(path)]) == 0
    output = capsys.readouterr().out
    assert "[red]ledger  data bbbbbbbbbbbb…" in output
    assert "data changed from aaaaaaaaaaaa… to bbbbbbbbbbbb…" in output
    [spent] = re.findall(
        r"counts against the present data: 2 charges of account 1, 1 of them made on earlier data; ε = ([\d.]+)", output
    )
    assert 0 <= float(spent) - epsilon([spend, spend], 1e-5, "rdp") <= 1e-3

    assert main(["privacy", "ledger", str(path), "--new-account", "other \x1b[31m[bold]people"]) == 0
    output = capsys.readouterr().out
    assert "account 2 opened" in output
    assert r"reason: other \x1b[31m[bold]people" in output
    assert "0 charges of account 2; ε = 0.000 at δ = 1e-05. 2 charges of earlier accounts" in output


@pytest.mark.parametrize("option", [["--new-account"], ["--new-account="], ["--new-account", "reason", "delta=1"]])
def test_new_account_needs_a_reason(tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(tmp_path / "ledger", "data"):
        pass
    assert main(["privacy", "ledger", str(tmp_path / "ledger"), *option]) == 2
    assert "Usage: fedsvd privacy ledger PATH" in capsys.readouterr().err
    with Ledger.read(tmp_path / "ledger") as ledger:
        assert ledger.state().events == ()
