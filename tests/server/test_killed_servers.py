"""The whole of `fedsvd train`, killed where it hurts most and resumed: as if nothing had happened, and all paid for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_servers.py")
ROOT = DRIVER.parents[2]
# The newest checkpoint that is left, and what else lies beside the checkpoints.
LEFT = {
    "in mid-aggregation": (2, []),
    "after the step": (2, []),
    "between a checkpoint's files": (2, [".tmp"]),
    "right before the rename": (2, [".tmp"]),
    "right after the rename": (3, []),
    "before the rows": (3, []),
    "after the last checkpoint": (5, []),
    "while an old checkpoint is deleted": (3, [".tmp-round-000000"]),
    "disk full": (2, []),
}
PRIVATE = {"in mid-aggregation": True, "right before the rename": True, "right after the rename": False}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # A process of its own, with one thread: only such a one may fork.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)],
        capture_output=True, text=True, timeout=900, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["whole"]["status"] == 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("point", LEFT)
def test_a_run_that_is_cut_off_and_resumed_is_the_run_that_was_not(point: str, results: dict[str, Any]) -> None:
    result, whole = results[point], results["whole"]
    newest, beside = LEFT[point]

    # 1: an error that is told; -9: killed.
    assert result["status"] == (1 if point == "disk full" else -9)
    rounds = [name for name in result["left"] if name.startswith("round-")]
    assert rounds[-1] == f"round-{newest:06d}"
    assert [name for name in result["left"] if name not in rounds] == beside
    assert result["resumed"] == 0
    assert result["adapter"] == whole["adapter"]
    # A client that the new process has not met yet is sent what a new client is, so that bytes may differ.
    sent = ("bytes_down",)
    assert [_without(row, sent) for row in result["rows"]] == [_without(row, sent) for row in whole["rows"]]
    assert result["checkpoints"][-3:] == whole["checkpoints"]
    assert f"resuming after round {newest} of 5" in result["later"]


@pytest.mark.slow
@pytest.mark.parametrize("point", PRIVATE)
def test_a_round_that_was_lost_is_paid_for_twice_and_told(point: str, results: dict[str, Any]) -> None:
    result, lost = results[f"{point}, private"], PRIVATE[point]

    assert (result["status"], result["resumed"]) == (-9, 0)
    for ledger in result["ledgers"].values():
        assert ledger["rounds"] == ([1, 2, 3, 3, 4, 5] if lost else [1, 2, 3, 4, 5])
        assert ledger["told"] == ledger["steps"]


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line_with_what_to_do(results: dict[str, Any]) -> None:
    told = [line for line in results["disk full"]["log"].splitlines() if "round 3 cannot be written" in line]
    assert len(told) == 1
    assert "make room, then go on with resume=" in told[0]
    assert "Traceback" not in results["disk full"]["log"]


@pytest.mark.slow
def test_what_was_being_written_is_dropped_with_a_line(results: dict[str, Any]) -> None:
    later = results["right before the rename"]["later"]
    assert sum("was being written when the run was cut off, and is dropped" in line for line in later.splitlines()) == 1


def _without(row: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}
