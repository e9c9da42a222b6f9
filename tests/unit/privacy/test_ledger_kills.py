"""Tests that every released result is charged exactly once if clients are killed, replayed or started twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_ledger_clients.py")
ROOT = DRIVER.parents[3]


@pytest.mark.slow
def test_killed_clients_never_under_count_exceed_the_budget_or_corrupt_the_ledger(tmp_path: Path) -> None:
    # A separate process with a single thread, because only such a process can fork safely.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}
    process = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "240"],
        capture_output=True, text=True, timeout=600, check=False, env=environment,
    )  # fmt: skip

    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads(process.stdout)
    assert result["violations"] == []
    killed_in = result["killed_in"]
    assert sum(killed_in.values()) >= result["trials"] >= 240
    assert "failed" not in killed_in
    phases = ("open", "migrate", "change", "reserve", "train", "mark", "reply", "replied")
    assert sum(killed_in.get(phase, 0) for phase in phases) >= 200
    for phase in ("open", "migrate", "change", "reserve", "train", "mark", "reply"):
        assert killed_in.get(phase, 0) >= 3, killed_in
    assert result["charged"] > result["released"] > 0
    assert result["replays_refused"] > 0
    # A kill during the first write to a ledger of version 1 leaves the old or the new ledger; both have occurred.
    assert result["not_migrated"] > 0
    assert result["migrated"] > 0
    assert result["changes"] > 20
    assert result["accounts"] > 0
    assert result["ledgers"] >= 20
