"""`fedsvd train`, killed at critical points and resumed: the result is the same and all spending is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_servers.py")
ROOT = DRIVER.parents[2]
# By point of interruption, the round of the newest checkpoint and the other entries of the checkpoint directory.
REMAINING = {
    "during aggregation": (2, []),
    "between a checkpoint's files": (2, [".tmp"]),
    "right before the rename": (2, [".tmp"]),
    "right after the rename": (3, []),
    "before the rows": (3, []),
    "after the last checkpoint": (4, []),
    "while an old checkpoint is deleted": (3, [".tmp-round-000000"]),
    "disk full": (2, []),
}
# By point of interruption, whether the interrupted round must be repeated.
PRIVATE = {"during aggregation": True, "right before the rename": True, "right after the rename": False}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # A separate single-threaded process, because forking with several threads is unsafe.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("killed")
    completed = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)],
        capture_output=True, text=True, timeout=900, check=False, env=environment,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-3000:]
    results: dict[str, Any] = json.loads(completed.stdout)
    assert results["uninterrupted"]["status"] == 0
    return results


@pytest.mark.slow
@pytest.mark.parametrize("point", REMAINING)
def test_interrupted_and_resumed_run_gives_the_same_result(point: str, results: dict[str, Any]) -> None:
    result, uninterrupted = results[point], results["uninterrupted"]
    newest, others = REMAINING[point]

    # 1: an error message; -9: killed.
    assert result["status"] == (1 if point == "disk full" else -9)
    rounds = [name for name in result["remaining"] if name.startswith("round-")]
    assert rounds[-1] == f"round-{newest:06d}"
    assert [name for name in result["remaining"] if name not in rounds] == others
    assert result["resumed"] == 0
    assert result["adapter"] == uninterrupted["adapter"]
    assert uninterrupted["best"]
    assert result["best"] == ({} if point == "while an old checkpoint is deleted" else uninterrupted["best"])
    assert [_comparable(row) for row in result["rows"]] == [_comparable(row) for row in uninterrupted["rows"]]
    starts = [row["privacy"]["start"] for row in result["rows"]]
    assert starts == [0] * (newest + 1) + [1] * (4 - newest)
    # The best round's checkpoint is kept, whatever its age.
    assert result["checkpoints"][-3:] == uninterrupted["checkpoints"][-3:]
    assert f"resuming after round {newest} of 4" in result["later"]


@pytest.mark.slow
@pytest.mark.parametrize("point", PRIVATE)
def test_repeated_round_is_charged_twice_and_reported(point: str, results: dict[str, Any]) -> None:
    result, repeated = results[f"{point}, private"], PRIVATE[point]

    assert (result["status"], result["resumed"]) == (-9, 0)
    for ledger in result["ledgers"].values():
        assert ledger["rounds"] == ([1, 2, 3, 3, 4] if repeated else [1, 2, 3, 4])
        assert ledger["reported"] == ledger["steps"]


@pytest.mark.slow
def test_full_disk_is_reported_in_one_line_with_a_remedy(results: dict[str, Any]) -> None:
    messages = [line for line in results["disk full"]["log"].splitlines() if "round 3 cannot be written" in line]
    assert len(messages) == 1
    assert "free disk space, then continue with fedsvd train resume=" in messages[0]
    assert "Traceback" not in results["disk full"]["log"]


@pytest.mark.slow
def test_incomplete_checkpoint_is_deleted_with_a_warning(results: dict[str, Any]) -> None:
    later = results["right before the rename"]["later"]
    assert sum("which an interrupted run left incomplete" in line for line in later.splitlines()) == 1


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what an interruption changes: downlink bytes (caches are empty), and which process wrote it."""
    settings = {key: value for key, value in row["privacy"].items() if key not in ("start", "interrupted")}
    return {key: value for key, value in row.items() if key != "bytes_down"} | {"privacy": settings}
