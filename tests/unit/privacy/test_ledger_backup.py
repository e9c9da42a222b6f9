"""The commands with which the documentation backs up and restores a site's ledger, executed as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, commands

from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger

SPEND = Spend(noise_multiplier=5.0, sample_rate=1.0, steps=1)
BUDGET = Budget(3.0, 1e-5, max_epsilon=3.0, max_delta=1e-5, accountant="rdp")


def charge(path: Path, message: str) -> None:
    with Ledger.open(path, fingerprint="data") as ledger:
        ledger.reserve("run", server_round=1, message_id=message, spend=SPEND, budget=BUDGET)


def back_up(folder: Path) -> subprocess.CompletedProcess[str]:
    """Execute the documented command on a directory in place of the container's."""
    [code] = [words[words.index("-c") + 1] for words in documented() if "python" in words]
    assert "/app/private/" in code
    command = [sys.executable, "-c", code.replace("/app/private/", f"{folder}/")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def documented() -> list[list[str]]:
    return [words for words in commands(ROOT / "docs" / "deployment.md") if any("backup" in word for word in words)]


@pytest.mark.parametrize("earlier", [False, True])
def test_the_documented_backup_holds_what_the_ledger_holds(earlier: bool, tmp_path: Path) -> None:
    charge(tmp_path / "ledger.sqlite", "first")
    if earlier:
        assert back_up(tmp_path).returncode == 0
        charge(tmp_path / "ledger.sqlite", "second")

    assert back_up(tmp_path).stderr == ""

    with Ledger.read(tmp_path / "ledger.sqlite") as ledger, Ledger.read(tmp_path / "backup.sqlite") as backup:
        assert backup.state() == ledger.state()
        assert len(backup.entries()) == 1 + earlier


def test_the_documented_backup_of_a_missing_ledger_fails_and_leaves_nothing(tmp_path: Path) -> None:
    result = back_up(tmp_path)

    assert result.returncode != 0
    assert "unable to open database file" in result.stderr
    assert list(tmp_path.iterdir()) == []
    # An empty file would be a damaged ledger, and each charge would fail.
    charge(tmp_path / "ledger.sqlite", "first")


def test_the_documented_command_restores_a_backup(tmp_path: Path) -> None:
    charge(tmp_path / "ledger.sqlite", "first")
    assert back_up(tmp_path).stderr == ""
    # Of a write that was interrupted: SQLite would apply it to the restored file.
    (tmp_path / "ledger.sqlite-journal").write_bytes(b"journal")
    (tmp_path / "ledger.sqlite").write_bytes(b"damaged")

    [words] = [words for words in documented() if "sh" in words]
    code = words[words.index("-c") + 1].replace("/app/private/", f"{tmp_path}/")
    subprocess.run(["sh", "-c", code], check=True, input=(tmp_path / "backup.sqlite").read_bytes())

    assert words[-2:] == ["<", "backups/ledger-DATE.sqlite"]
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        assert len(ledger.entries()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.sqlite", "backup.sqlite"}


def test_a_backup_that_failed_is_not_copied_and_its_directory_is_created_first() -> None:
    create, back_up, copy, show, _ = documented()
    assert create == ["mkdir", "-p", "backups"]
    # Otherwise an older backup.sqlite would be copied under today's date.
    assert back_up[-1] == "&&"
    assert copy[:3] == ["docker", "compose", "cp"]
    assert show[:3] == ["fedsvd", "privacy", "ledger"]
