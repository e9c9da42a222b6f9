"""A client that is killed at any moment, replayed, or doubled: each result that left is paid for, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_ledger_clients.py")
ROOT = DRIVER.parents[3]


@pytest.mark.slow
def test_clients_killed_anywhere_never_under_count_never_exceed_and_never_corrupt(tmp_path: Path) -> None:
    # A process of its own, with one thread: only such a one may fork.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "240"],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    killed = result["killed_in"]
    assert sum(killed.values()) == result["trials"] >= 240
    assert "failed" not in killed
    assert sum(killed.get(phase, 0) for phase in ("open", "reserve", "train", "mark", "reply", "replied")) >= 200
    for phase in ("open", "reserve", "train", "mark", "reply"):
        assert killed.get(phase, 0) >= 3, killed
    assert result["charged"] > result["released"] > 0
    assert result["replays_refused"] > 0
