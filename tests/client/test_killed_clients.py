"""The real ClientApp, killed mid-round and restarted: the ledger has each released result exactly once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_real_clients.py")
ROOT = DRIVER.parents[2]


@pytest.mark.slow
def test_real_client_killed_mid_round_has_charged_every_released_result(tmp_path: Path) -> None:
    # A separate single-threaded process, because forking with several threads is unsafe.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "5"],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip

    assert completed.returncode == 0, completed.stderr[-2000:]
    result = json.loads(completed.stdout)
    charged = dict(result["charged"])
    released = [name for name, reason in result["replies"] if reason is None]
    assert result["killed"] == 5
    assert len(charged) == len(result["charged"])
    assert released
    assert len(set(released)) == len(released)
    assert all(charged[name] for name in released)
    refused = [reason for _, reason in result["replies"] if reason is not None]
    assert refused
    assert all("ReplayedMessageError" in reason for reason in refused)
