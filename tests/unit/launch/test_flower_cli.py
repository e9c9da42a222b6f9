"""What Flower's command line says of the runs of a SuperLink."""

import json
from pathlib import Path

import pytest

from fedsvd.launch import flower_cli
from fedsvd.launch.flower_cli import Connection


def play(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run code in place of Flower's command, whose arguments are ``words``."""
    monkeypatch.setattr(flower_cli, "COMMAND_LINE", f"import sys, time; words = sys.argv[1:]; {code}")


def test_later_runs_are_in_the_order_of_their_submission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Flower lists the newest run first; IDs are random.
    times = {"50": "2027-01-03", "7": "2027-01-02", "90": "2027-01-01"}
    runs = [{"run-id": number, "pending-at": time} for number, time in times.items()]
    play(monkeypatch, f"print({json.dumps({'success': True, 'runs': runs})!r})")
    connection = Connection("lab", tmp_path)

    assert connection.later_runs(90) == [7, 50]
    assert connection.later_runs(50) == []
    assert connection.later_runs(1) == []
    assert connection.newest_run() == 50


def test_what_a_run_has_printed_is_read_without_waiting_for_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connection = Connection("lab", tmp_path)
    play(monkeypatch, "print(*words); print('\\x1b[92mround 1\\x1b[0m')")
    assert connection.printed(7) == ["log 7 lab --show", "round 1"]

    monkeypatch.setattr(flower_cli, "_SHOW_TIMEOUT_S", 0.5)
    play(monkeypatch, "time.sleep(60)")
    assert connection.printed(7) == []
