"""What trackers log, with their real libraries, offline."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import wait_until

from fedsvd import tracking
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.runs.folder import RunFolder, read_json, write_rows

SITES = {
    "a": {"singular_values": [4.0, 1.0], "effective_rank": 1.5, "nuclear_norm": 5.0, "principal_angle": 0.0},
    "b": {"singular_values": [2.0, 1.0, 0.5], "effective_rank": 2.5, "nuclear_norm": 3.5, "principal_angle": 1.0},
}
ROWS: list[Mapping[str, Any]] = [
    {"server_round": 0, "accuracy": 0.5, "epsilon": None, "skipped": False, "clients_refused": {}, "sites": {}},
    {"server_round": 1, "accuracy": None, "epsilon": 1.5, "client_epsilons": {"0": 1.5, "1": None}, "sites": SITES},
    {"server_round": 2, "accuracy": 0.75, "epsilon": 2.5, "client_epsilons": {"0": 2.5, "1": 2.0}, "sites": SITES},
]


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def log_rows(folder: RunFolder, rows: list[Mapping[str, Any]], *overrides: str) -> list[str]:
    """Log rows to a tracker, as a run does, and return the warnings."""
    warnings: list[str] = []
    with tracking.open_tracker(config(*overrides), folder, warnings.append) as log_row:
        for row in rows:
            log_row(row)
    return warnings


def config(*overrides: str) -> Config:
    return compose(["experiment=smoke", *overrides])


def test_only_the_numbers_of_a_row_are_logged() -> None:
    assert tracking.scalars(ROWS[0]) == {"accuracy": 0.5}
    assert tracking.scalars(ROWS[1]) == {
        "epsilon": 1.5, "client_epsilon/0": 1.5, "sites/effective_rank": 2.0, "sites/nuclear_norm": 4.25,
        "sites/principal_angle": 0.5, "singular_value/0": 3.0, "singular_value/1": 1.0,
    }  # fmt: skip


@pytest.mark.slow
@needs("tensorboard")
def test_tensorboard_events_can_be_read_and_a_resumed_run_continues_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    assert log_rows(folder, ROWS, "tracking=tensorboard") == []
    # Round 2 was logged, but its row was not written, so the resumed run repeats it.
    write_rows(folder.metrics, ROWS[:2])
    repeated = {**ROWS[2], "accuracy": 0.875}
    assert log_rows(folder, [repeated], "tracking=tensorboard", f"resume='{tmp_path}'") == []

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(0, 0.5), (2, 0.875)]
    assert [(e.step, e.value) for e in events.Scalars("client_epsilon/0")] == [(1, 1.5), (2, 2.5)]
    assert "experiment" not in events.Tags()["scalars"]
    assert "config/text_summary" in events.Tags()["tensors"]


# MLflow's SQL store uses features that are deprecated in the SQLAlchemy version that Flower requires.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@needs("mlflow")
def test_mlflow_uses_one_run_across_a_resume_and_records_its_status(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder, uri = RunFolder(tmp_path / "run"), f"sqlite:///{tmp_path / 'store.db'}"
    overrides = ["tracking=mlflow", f"tracking.uri='{uri}'", "tracking.project=hospitals"]

    def fail_after(row: Mapping[str, Any]) -> None:
        with tracking.open_tracker(config(*overrides), folder, print) as log_row:
            log_row(row)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after(ROWS[0])
    client = MlflowClient(tracking_uri=uri)
    run_id = read_json(folder.tracking)["mlflow"]
    assert client.get_run(run_id).info.status == "FAILED"

    assert log_rows(folder, ROWS[1:], *overrides, f"resume='{folder.root}'") == []

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["privacy.target_epsilon"] == "6.0"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "accuracy")] == [(0, 0.5), (2, 0.75)]
    assert client.get_experiment_by_name("hospitals").experiment_id == run.info.experiment_id


@pytest.mark.slow
@needs("wandb")
def test_wandb_offline_writes_a_run_that_can_be_synced(tmp_path: Path) -> None:
    overrides = ["tracking=wandb", "tracking.mode=offline"]
    assert log_rows(RunFolder(tmp_path), ROWS, *overrides) == []

    name = read_json(tmp_path / "tracking.json")["wandb"]
    files = list(tmp_path.rglob(f"run-{name}.wandb"))
    assert len(files) == 1
    # The library's background process may still be writing after it has reported the run as finished.
    wait_until(lambda: b"accuracy" in files[0].read_bytes(), 30, "the accuracy in the run's file")
    content = files[0].read_bytes()
    assert b"accuracy" in content
    assert b"client_epsilon/0" in content


def test_a_failing_service_causes_one_warning_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def log(server_round: int, values: Mapping[str, float]) -> None:
        calls.append("log")
        raise OSError("no route to host")

    tracker = SimpleNamespace(log=log, close=lambda succeeded: calls.append(f"close {succeeded}"))
    monkeypatch.setattr(tracking, "check_tracking", lambda settings: None)
    monkeypatch.setitem(sys.modules, "fedsvd.tracking.wandb_run", SimpleNamespace(start=lambda *_: tracker))

    warnings = log_rows(RunFolder(tmp_path), ROWS, "tracking=wandb")

    assert calls == ["log", "close True"]
    assert len(warnings) == 1
    assert "no route to host" in warnings[0]


def test_a_missing_library_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'fedsvd\[mlflow\]'"):
        tracking.check_tracking(config("tracking=mlflow").tracking)
