"""Planning a sweep, skipping and resuming its runs, and reporting its progress."""

import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from fedsvd.config.compose import compose, to_yaml
from fedsvd.config.overrides import parse
from fedsvd.config.quoting import path_override
from fedsvd.errors import ConfigError, DivergedError, RunError
from fedsvd.launch import sweep
from fedsvd.launch.sweep import plan_sweep, run_or_resume
from fedsvd.report.sweep_progress import RunStatus, SweepReporter, format_duration, read_statuses, seconds_left
from fedsvd.runs.folder import read_json, write_json, write_rows
from fedsvd.runs.ownership import owned

OVERRIDES = ["experiment=smoke", "method=fedsvd,ffa_lora", "seed=0,1,2"]


def plan_in(folder: Path, *overrides: str) -> sweep.SweepPlan:
    return plan_sweep([*overrides, f"hydra.sweep.dir='{folder}'"])


def write_run(folder: Path, overrides: list[str], state: str = "finished", rounds: int = 2) -> Path:
    write_json(folder / "overrides.json", overrides)
    (folder / "config.yaml").write_text(to_yaml(compose(overrides)), encoding="utf-8")
    rows = [{"server_round": n, "accuracy": 0.5 + n / 10, "epsilon": 1.5} for n in range(rounds + 1)]
    write_rows(folder / "metrics.jsonl", rows)
    write_json(folder / "run.json", {"state": state, "reason": "RunError: diverged" if state == "failed" else None})
    if state == "finished":
        (folder / "adapter").mkdir()
    return folder


def test_runs_are_counted_and_folders_named_after_swept_values(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *OVERRIDES)

    assert plan.total == 6
    assert plan.folder == tmp_path
    assert "hydra.job.config.override_dirname.exclude_keys=[experiment]" in plan.arguments


@pytest.mark.slow
def test_the_command_line_overrides_what_an_experiment_sweeps(tmp_path: Path) -> None:
    assert plan_in(tmp_path / "a", "experiment=epsilon_sweep").total == 27
    assert plan_in(tmp_path / "b", "experiment=epsilon_sweep", "seed=7").total == 9
    assert plan_in(tmp_path / "c", "experiment=epsilon_sweep", "seed=0,1", "model.rank=2,4").total == 36


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fedsvd,flors"], "did you mean flora"),
        (["experiment=epsilon_sweep", "train.num_round=1"], "train.num_rounds"),
        (["experiment=smoke", "hydra/launcher=ray"], r"fedsvd\[ray\]"),
        (["resume=/nowhere"], "not a sweep directory"),
    ],
)
def test_invalid_overrides_are_rejected_before_anything_runs(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_in(tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_resumes_from_its_folder_alone(tmp_path: Path) -> None:
    first = plan_in(tmp_path, *OVERRIDES)
    again = plan_sweep([f"resume={tmp_path}"])
    more = plan_sweep([f"resume={tmp_path}", "seed=0,1,2,3"])

    assert (again.total, again.folder) == (first.total, first.folder)
    assert more.total == 8


def test_a_folder_with_runs_of_other_settings_is_rejected(tmp_path: Path) -> None:
    write_run(tmp_path / "method=fedsvd,seed=0", ["experiment=smoke", "method=fedsvd", "seed=0"])
    plan_in(tmp_path, *OVERRIDES)

    with pytest.raises(ConfigError, match=r"a run without train.num_rounds=5"):
        plan_in(tmp_path, *OVERRIDES, "train.num_rounds=5")


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_run", lambda overrides, folder: pytest.fail("it ran again"))
    folder = write_run(tmp_path / "run", ["experiment=smoke"])

    assert run_or_resume(["experiment=smoke"], folder) == 0.7


@pytest.mark.parametrize("kept", ["checkpoints/round-000001", "remote.json", None])
def test_an_unfinished_run_resumes_or_restarts(
    kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(sweep, "_run", lambda overrides, folder: ran.append(list(overrides)) or 0.25)
    folder = write_run(tmp_path / "run", ["experiment=smoke"], state="running")
    if kept:
        (folder / kept).mkdir(parents=True)

    assert run_or_resume(["experiment=smoke"], folder) == 0.25
    assert ran == [["experiment=smoke", *([f"resume='{folder}'"] if kept else [])]]


def test_a_failed_run_is_recorded_and_the_sweep_continues(tmp_path: Path) -> None:
    # This method does not support clients of different ranks, which is detected before anything is loaded.
    overrides = ["experiment=smoke", "method=fedavg_lora", "federation.client_ranks=[2,4]"]
    (tmp_path / "run").mkdir()
    assert math.isnan(run_or_resume(overrides, tmp_path / "run"))

    assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"
    [(name, reason)] = sweep.unfinished_runs(tmp_path)
    assert name == "run"
    assert "ConfigError" in reason


def test_a_folder_that_another_process_uses_is_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["experiment=smoke"], state="running")
    with owned(folder):
        assert math.isnan(run_or_resume(["experiment=smoke"], folder))
    assert read_json(folder / "run.json")["state"] == "running"


def test_the_time_left_is_estimated_from_the_runs_of_this_process() -> None:
    # Of 10 runs 4 were done before; 2 more took 60 s, so the last 4 take 120 s.
    assert seconds_left(6, 4, 10, 60.0) == 120.0
    assert seconds_left(4, 4, 10, 60.0) is None
    assert [format_duration(s) for s in (None, 40, 600, 9000)] == ["?", "40 s", "10 min", "2.5 h"]


def test_statuses_are_read_from_the_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a=1", ["experiment=smoke"])
    write_run(tmp_path / "a=2", ["experiment=smoke"], state="running", rounds=1)
    write_run(tmp_path / "a=3", ["experiment=smoke"], state="failed", rounds=0)
    found: dict[str, RunStatus] = {status.name: status for status in read_statuses(tmp_path, {})}

    assert [(s.state, s.done) for s in found.values()] == [("finished", 1.0), ("running", 0.5), ("failed", 1.0)]
    assert found["a=2"].summary() == "accuracy 60.0%  ε ≤ 1.50"
    assert found["a=3"].summary() == "failed: RunError: diverged"


@pytest.mark.parametrize("terminal", [True, False])
def test_each_finished_run_is_reported_once_with_the_time_left(terminal: bool, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    write_run(tmp_path / "seed=0", ["experiment=smoke"])
    failed = write_run(tmp_path / "seed=1", ["experiment=smoke"], state="failed")
    with SweepReporter(tmp_path, 4, console, poll_interval_s=60.0) as reporter:
        write_run(tmp_path / "seed=2", ["experiment=smoke"])
        write_run(tmp_path / "seed=3", ["experiment=smoke"], state="running", rounds=1)
        reporter.refresh()
        reporter.refresh()
        # A run that failed before is retried and fails again.
        write_json(failed / "run.json", {"state": "failed", "reason": "again"})
        os.utime(failed / "run.json", (1e9, 1e9))
    lines = console.file.getvalue()

    assert "sweep of 4 runs, 1 already finished" in lines
    assert lines.count("seed=0 ") == 0
    assert lines.count("run 2/4  seed=2  accuracy 70.0%  ε ≤ 1.50  about") == 1
    assert lines.count("run 3/4  seed=1  failed: again") == 1
    assert ("50%" in lines) == terminal


def test_runs_are_numbered_one_by_one_and_a_later_write_of_the_record_is_no_new_run(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    with SweepReporter(tmp_path, 3, console, poll_interval_s=60.0) as reporter:
        first = write_run(tmp_path / "seed=0", ["experiment=smoke"])
        write_run(tmp_path / "seed=1", ["experiment=smoke"])
        reporter.refresh()
        os.utime(first / "run.json", (1e9, 1e9))
        reporter.refresh()
        write_run(tmp_path / "seed=2", ["experiment=smoke"])
    lines = [line.split("  ")[:2] for line in console.file.getvalue().splitlines() if line.startswith("run ")]

    assert lines == [["run 1/3", "seed=0"], ["run 2/3", "seed=1"], ["run 3/3", "seed=2"]]


def test_the_overrides_of_a_sweep_are_saved(tmp_path: Path) -> None:
    plan_in(tmp_path, *OVERRIDES)

    assert json.loads((tmp_path / "sweep.json").read_text())["words"] == OVERRIDES


@pytest.mark.slow
@pytest.mark.parametrize(
    "fixed",
    ["plots=true", "train.learning_rate=1e-05", "data.max_test_examples=null", "federation.client_ranks=[2, 4]"],
)
def test_a_sweep_resumes_whatever_the_types_of_its_overrides(fixed: str, tmp_path: Path) -> None:
    folder = tmp_path / "a=b, it's"
    sweep_dir = path_override("hydra.sweep.dir", folder)
    overrides = ["experiment=smoke", "method=ffa_lora", fixed, "seed=0,1"]
    plan_sweep([*overrides, sweep_dir])
    [parsed] = parse([fixed])
    # As Hydra passes it to the run.
    passed = f"{parsed.get_key_element()}={parsed.get_value_element_as_str()}"
    write_run(folder / "seed=0", ["experiment=smoke", "method=ffa_lora", passed, "seed=0"])

    assert plan_sweep([path_override("resume", folder)]).total == 2
    assert plan_sweep([f"resume={folder}", "seed=0,1,2"]).total == 3


def test_relative_paths_of_a_sweep_refer_to_its_first_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    plan = plan_in(
        tmp_path / "sweep", "experiment=smoke", "data=csv", "data.path=a.csv,b.csv", "privacy.ledger_dir=led"
    )
    assert f"privacy.ledger_dir='{tmp_path}/there/led'" in plan.arguments
    monkeypatch.chdir(tmp_path)
    again = plan_sweep([f"resume={tmp_path / 'sweep'}"])
    assert plan.working_directory == again.working_directory == tmp_path / "there"


def test_invalid_combinations_end_the_sweep_before_it_starts(tmp_path: Path) -> None:
    overrides = ["experiment=smoke", "method=ffa_lora,fedavg_lora", "federation.client_ranks=[2,4]"]
    with pytest.raises(ConfigError, match="client_ranks"):
        plan_in(tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "accuracy"),
    [(DivergedError("loss is nan"), 0.0), (RunError("away"), math.nan), (OSError(28, "full"), math.nan)],
)
def test_only_divergence_counts_as_accuracy_zero(
    error: Exception, accuracy: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(overrides: list[str], folder: Path) -> float:
        raise error

    monkeypatch.setattr(sweep, "_run", fail)
    assert run_or_resume(["experiment=smoke"], tmp_path) == pytest.approx(accuracy, nan_ok=True)
    [(_, reason)] = sweep.unfinished_runs(tmp_path)
    assert str(error.args[-1]) in reason


def test_sweeps_of_one_second_have_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pattern = "hydra.sweep.dir='sweep/${now:%Y}'"
    folders = [plan_sweep(["experiment=smoke", "seed=0,1", pattern]).folder for _ in range(2)]
    assert folders[1].name == f"{folders[0].name}-2"
