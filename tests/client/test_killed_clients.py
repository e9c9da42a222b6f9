"""The real ClientApp, killed in mid-round and asked again: each result that left is in its ledger, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_real_clients.py")
ROOT = DRIVER.parents[2]


@pytest.mark.slow
def test_a_real_client_killed_in_mid_round_has_paid_for_all_that_left_it(tmp_path: Path) -> None:
    # A process of its own, with one thread: only such a one may fork.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "5"],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    charged = dict(told["charged"])
    left = [name for name, reason in told["replies"] if reason is None]
    assert told["killed"] == 5
    assert len(charged) == len(told["charged"])
    assert left
    assert len(set(left)) == len(left)
    assert all(charged[name] for name in left)
    refused = [reason for _, reason in told["replies"] if reason is not None]
    assert refused
    assert all("ReplayedMessageError" in reason for reason in refused)
