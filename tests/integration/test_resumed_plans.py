"""``fedsvd privacy plan`` of a run that is resumed."""

import re
from pathlib import Path

import pytest

import fedsvd
from fedsvd.cli import main

pytestmark = pytest.mark.slow

RUN = ["experiment=smoke", "plots=false", "privacy.target_epsilon=3", "privacy.max_epsilon=4"]


def client_cells(output: str, client: str) -> list[str]:
    [row] = [line for line in output.splitlines() if re.match(rf"│ +{client} │", line)]
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with ledgers that two runs have charged."""
    folder = tmp_path_factory.mktemp("ledgers")
    for name in ("first", "second"):
        fedsvd.train(*RUN, f"privacy.ledger_dir={folder}", run_dir=folder / name)
    return folder


def test_plan_of_a_resumed_run_counts_completed_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedsvd.train(*RUN, run_dir=tmp_path)
    capsys.readouterr()
    assert main(["privacy", "plan", f"resume={tmp_path}"]) == 0

    output = capsys.readouterr().out
    *_, run, before, total = map(float, client_cells(output, "0"))
    assert run == before == total
    assert "2 rounds, 2 already done" in output

    # The further rounds have another noise multiplier than those that are done.
    assert main(["privacy", "plan", f"resume={tmp_path}", "train.num_rounds=6", "privacy.max_epsilon=9"]) == 0
    *_, run, before, total = map(float, client_cells(capsys.readouterr().out, "0"))
    assert before < run == total > 3


def test_plan_of_a_resumed_run_tells_its_own_charges_from_those_of_others(
    ledgers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", f"resume={ledgers / 'first'}"]) == 0

    *_, run, before, total = map(float, client_cells(capsys.readouterr().out, "0"))
    assert run <= 3 < before == total
