"""Progress of a sweep whose directories change while they are read."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedsvd.report.sweep_progress import read_statuses
from fedsvd.runs.folder import write_json


def test_a_directory_that_is_removed_meanwhile_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=1" / "checkpoints" / "round-000001").mkdir(parents=True)
    write_json(tmp_path / "a=1" / "run.json", {"state": "running"})
    scandir = os.scandir

    def remove(path: Any = ".") -> Any:
        if "round-" in str(path):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove)
    assert [status.name for status in read_statuses(tmp_path, {})] == ["a=1"]
