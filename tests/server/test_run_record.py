"""What the ServerApp records of a run before its first round."""

from pathlib import Path
from typing import Any

import pytest

from fedsvd.config.compose import compose
from fedsvd.runs.folder import RunFolder, read_json, write_json
from server import app


@pytest.mark.parametrize(("state", "interrupted"), [("failed", 2), ("running", 2), ("finished", 1)])
def test_record_says_which_run_of_flower_it_is_of_and_counts_interrupted_processes(
    state: str, interrupted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: dict[str, Any] = {}
    monkeypatch.setattr(app, "describe_run", lambda config: {})
    monkeypatch.setattr(app, "check_resume", lambda folder, config, facts: None)
    monkeypatch.setattr(app, "check_remaining_budget", lambda config: [])
    monkeypatch.setattr(app, "serve", lambda grid, config, folder: during.update(read_json(folder.record)))
    folder = RunFolder(tmp_path)
    write_json(folder.record, {"state": state, "interrupted": 1, "run_id": 6})

    app._run(None, compose(["experiment=smoke", "plots=false", f"resume='{tmp_path}'"]), folder, 7)  # type: ignore[arg-type]

    assert (during["run_id"], during["interrupted"], during["state"]) == (7, interrupted, "running")
    record = read_json(folder.record)
    assert (record["run_id"], record["state"]) == (7, "finished")
