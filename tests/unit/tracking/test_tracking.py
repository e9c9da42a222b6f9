"""What trackers are told, through their real libraries, offline."""

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


def told(folder: RunFolder, rows: list[Mapping[str, Any]], *words: str) -> list[str]:
    """Tell a tracker of these rows, as a run does, and return its warnings."""
    warnings: list[str] = []
    with tracking.tracked(config(*words), folder, warnings.append) as track:
        for row in rows:
            track(row)
    return warnings


def config(*words: str) -> Config:
    return compose(["experiment=smoke", *words])


def test_rows_become_numbers_and_nothing_else() -> None:
    assert tracking.scalars(ROWS[0]) == {"accuracy": 0.5}
    assert tracking.scalars(ROWS[1]) == {
        "epsilon": 1.5, "client_epsilon/0": 1.5, "sites/effective_rank": 2.0, "sites/nuclear_norm": 4.25,
        "sites/principal_angle": 0.5, "singular_value/0": 3.0, "singular_value/1": 1.0,
    }  # fmt: skip


@needs("tensorboard")
def test_tensorboard_reads_what_was_told_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    assert told(folder, ROWS, "tracking=tensorboard") == []
    # Round 2 was told, but its row was never written: it is taken again.
    write_rows(folder.metrics, ROWS[:2])
    again = {**ROWS[2], "accuracy": 0.875}
    assert told(folder, [again], "tracking=tensorboard", f"resume='{tmp_path}'") == []

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(0, 0.5), (2, 0.875)]
    assert [(e.step, e.value) for e in events.Scalars("client_epsilon/0")] == [(1, 1.5), (2, 2.5)]
    assert "experiment" not in events.Tags()["scalars"]
    assert "config/text_summary" in events.Tags()["tensors"]


# MLflow's SQL store is written for a SQLAlchemy before the one that Flower brings.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@needs("mlflow")
def test_mlflow_keeps_one_run_through_a_resume_and_knows_how_it_ended(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder, uri = RunFolder(tmp_path / "run"), f"sqlite:///{tmp_path / 'store.db'}"
    words = ["tracking=mlflow", f"tracking.uri='{uri}'", "tracking.project=hospitals"]

    def cut_off(row: Mapping[str, Any]) -> None:
        with tracking.tracked(config(*words), folder, print) as track:
            track(row)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off(ROWS[0])
    client = MlflowClient(tracking_uri=uri)
    run_id = read_json(folder.tracking)["mlflow"]
    assert client.get_run(run_id).info.status == "FAILED"

    assert told(folder, ROWS[1:], *words, f"resume='{folder.root}'") == []

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["privacy.target_epsilon"] == "6.0"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "accuracy")] == [(0, 0.5), (2, 0.75)]
    assert client.get_experiment_by_name("hospitals").experiment_id == run.info.experiment_id


@needs("wandb")
def test_wandb_offline_leaves_a_run_to_be_synced(tmp_path: Path) -> None:
    words = ["tracking=wandb", "tracking.mode=offline"]
    assert told(RunFolder(tmp_path), ROWS, *words) == []

    name = read_json(tmp_path / "tracking.json")["wandb"]
    found = list(tmp_path.rglob(f"run-{name}.wandb"))
    assert len(found) == 1
    # The library's own process may still be writing when it says that the run is finished.
    wait_until(lambda: b"accuracy" in found[0].read_bytes(), 30, "the accuracy in the run's file")
    written = found[0].read_bytes()
    assert b"accuracy" in written
    assert b"client_epsilon/0" in written


def test_a_service_that_fails_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def log(server_round: int, values: Mapping[str, float]) -> None:
        calls.append("log")
        raise OSError("no route to host")

    tracker = SimpleNamespace(log=log, close=lambda succeeded: calls.append(f"close {succeeded}"))
    monkeypatch.setattr(tracking, "check_tracking", lambda settings: None)
    monkeypatch.setitem(sys.modules, "fedsvd.tracking.wandb_run", SimpleNamespace(start=lambda *_: tracker))

    warnings = told(RunFolder(tmp_path), ROWS, "tracking=wandb")

    assert calls == ["log", "close True"]
    assert len(warnings) == 1
    assert "no route to host" in warnings[0]


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'fedsvd\[mlflow\]'"):
        tracking.check_tracking(config("tracking=mlflow").tracking)
