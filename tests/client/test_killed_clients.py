"""The real ClientApp or its trainer, killed mid-round and restarted: the ledger has each released result exactly once.

With more kills: PYTHONPATH=. .venv/bin/python tests/client/kill_real_clients.py "$(mktemp -d)" 200 trainer
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_real_clients.py")
ROOT = DRIVER.parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["client", "trainer"])
def test_real_client_killed_mid_round_has_charged_every_released_result(killed: str, tmp_path: Path) -> None:
    # A separate single-threaded process, because forking with several threads is unsafe.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "5", killed],
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
    lost = [reason for reason in refused if reason.startswith("TrainerError")]
    assert bool(lost) == (killed == "trainer")
    assert len(lost) <= 5
    assert all("ReplayedMessageError" in reason for reason in refused if reason not in lost)
    assert len(refused) > len(lost)
