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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "240"],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip

    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads(process.stdout)
    assert result["violations"] == []
    killed_in = result["killed_in"]
    assert sum(killed_in.values()) == result["trials"] >= 240
    assert "failed" not in killed_in
    assert sum(killed_in.get(phase, 0) for phase in ("open", "reserve", "train", "mark", "reply", "replied")) >= 200
    for phase in ("open", "reserve", "train", "mark", "reply"):
        assert killed_in.get(phase, 0) >= 3, killed_in
    assert result["charged"] > result["released"] > 0
    assert result["replays_refused"] > 0
