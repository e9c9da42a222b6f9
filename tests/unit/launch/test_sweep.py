"""What a sweep will run, which of its runs it recognises, and what is told of it meanwhile."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from fedsvd.config.compose import compose, to_yaml
from fedsvd.errors import ConfigError
from fedsvd.launch import sweep
from fedsvd.launch.sweep import plan_sweep, run_or_resume
from fedsvd.report.sweep_progress import RunStatus, SweepReporter, duration, seconds_left, statuses
from fedsvd.runs.folder import read_json, write_json, write_rows

WORDS = ["experiment=smoke", "method=fedsvd,ffa_lora", "seed=0,1,2"]


def planned(folder: Path, *words: str) -> sweep.SweepPlan:
    return plan_sweep([*words, f"hydra.sweep.dir='{folder}'"])


def write_run(folder: Path, overrides: list[str], state: str = "finished", rounds: int = 2) -> Path:
    write_json(folder / "overrides.json", overrides)
    (folder / "config.yaml").write_text(to_yaml(compose(overrides)), encoding="utf-8")
    rows = [{"server_round": n, "accuracy": 0.5 + n / 10, "epsilon": 1.5} for n in range(rounds + 1)]
    write_rows(folder / "metrics.jsonl", rows)
    write_json(folder / "run.json", {"state": state, "reason": "RunError: diverged" if state == "failed" else None})
    if state == "finished":
        (folder / "adapter").mkdir()
    return folder


def test_runs_are_counted_and_folders_named_after_what_is_swept(tmp_path: Path) -> None:
    plan = planned(tmp_path, *WORDS)

    assert plan.total == 6
    assert plan.folder == tmp_path
    assert "hydra.job.config.override_dirname.exclude_keys=[experiment]" in plan.words


def test_what_an_experiment_sweeps_counts_and_the_command_line_wins(tmp_path: Path) -> None:
    assert planned(tmp_path / "a", "experiment=epsilon_sweep").total == 27
    assert planned(tmp_path / "b", "experiment=epsilon_sweep", "seed=7").total == 9
    assert planned(tmp_path / "c", "experiment=epsilon_sweep", "seed=0,1", "model.rank=2,4").total == 36


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=fedsvd,flors"], "did you mean flora"),
        (["experiment=epsilon_sweep", "train.num_round=1"], "train.num_rounds"),
        (["experiment=smoke", "hydra/launcher=ray"], r"fedsvd\[ray\]"),
        (["resume=/nowhere"], "not the folder of a sweep"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_by_its_folder_alone(tmp_path: Path) -> None:
    first = planned(tmp_path, *WORDS)
    again = plan_sweep([f"resume={tmp_path}"])
    more = plan_sweep([f"resume={tmp_path}", "seed=0,1,2,3"])

    assert (again.total, again.folder) == (first.total, first.folder)
    assert more.total == 8


def test_a_folder_with_runs_of_other_settings_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "method=fedsvd,seed=0", ["experiment=smoke", "method=fedsvd", "seed=0"])
    planned(tmp_path, *WORDS)

    with pytest.raises(ConfigError, match=r"a run without train.num_rounds=5"):
        planned(tmp_path, *WORDS, "train.num_rounds=5")


def test_a_finished_run_is_recognised_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_run", lambda words, folder: pytest.fail("it ran again"))
    folder = write_run(tmp_path / "run", ["experiment=smoke"])

    assert run_or_resume(["experiment=smoke"], folder) == 0.7


@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_unfinished_run_goes_on_or_starts_anew(
    checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(sweep, "_run", lambda words, folder: ran.append(list(words)) or 0.25)
    folder = write_run(tmp_path / "run", ["experiment=smoke"], state="running")
    if checkpoint:
        (folder / "checkpoints" / "round-000001").mkdir(parents=True)

    assert run_or_resume(["experiment=smoke"], folder) == 0.25
    assert ran == [["experiment=smoke", *([f"resume='{folder}'"] if checkpoint else [])]]


def test_a_run_that_fails_is_written_down_and_the_sweep_goes_on(tmp_path: Path) -> None:
    # A method that cannot serve clients of unlike ranks: found before anything is loaded.
    words = ["experiment=smoke", "method=fedavg_lora", "federation.client_ranks=[2,4]"]
    assert run_or_resume(words, tmp_path / "run") == 0.0

    assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"
    [(name, reason)] = sweep.unfinished_runs(tmp_path)
    assert name == "run"
    assert "ConfigError" in reason


def test_a_folder_that_is_at_work_elsewhere_is_left_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["experiment=smoke"], state="running")
    with sweep._alone(folder):
        assert run_or_resume(["experiment=smoke"], folder) == 0.0
    assert read_json(folder / "run.json")["state"] == "running"


def test_the_time_left_follows_from_what_this_process_has_done() -> None:
    # Of 10 runs 4 were done before; 2 more took 60 s, so the last 4 take 120 s.
    assert seconds_left(6, 4, 10, 60.0) == 120.0
    assert seconds_left(4, 4, 10, 60.0) is None
    assert [duration(s) for s in (None, 40, 600, 9000)] == ["?", "40 s", "10 min", "2.5 h"]


def test_statuses_are_read_from_the_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a=1", ["experiment=smoke"])
    write_run(tmp_path / "a=2", ["experiment=smoke"], state="running", rounds=1)
    write_run(tmp_path / "a=3", ["experiment=smoke"], state="failed", rounds=0)
    found: dict[str, RunStatus] = {status.name: status for status in statuses(tmp_path, {})}

    assert [(s.state, s.done) for s in found.values()] == [("finished", 1.0), ("running", 0.5), ("failed", 1.0)]
    assert found["a=2"].said() == "accuracy 60.0%  ε ≤ 1.50"
    assert found["a=3"].said() == "failed: RunError: diverged"


@pytest.mark.parametrize("terminal", [True, False])
def test_each_run_that_ends_is_told_once_with_the_time_left(terminal: bool, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    write_run(tmp_path / "seed=0", ["experiment=smoke"])
    failed = write_run(tmp_path / "seed=1", ["experiment=smoke"], state="failed")
    with SweepReporter(tmp_path, 4, console, every=60.0) as reporter:
        write_run(tmp_path / "seed=2", ["experiment=smoke"])
        write_run(tmp_path / "seed=3", ["experiment=smoke"], state="running", rounds=1)
        reporter.look()
        reporter.look()
        # What had failed before is taken up again, and fails once more.
        write_json(failed / "run.json", {"state": "failed", "reason": "again"})
        os.utime(failed / "run.json", (1e9, 1e9))
    lines = console.file.getvalue()

    assert "sweep of 4 runs, 1 of them finished before" in lines
    assert lines.count("seed=0 ") == 0
    assert lines.count("run 2/4  seed=2  accuracy 70.0%  ε ≤ 1.50  about") == 1
    assert lines.count("run 3/4  seed=1  failed: again") == 1
    assert ("50%" in lines) == terminal


def test_the_words_of_a_sweep_are_kept(tmp_path: Path) -> None:
    planned(tmp_path, *WORDS)

    assert json.loads((tmp_path / "sweep.json").read_text())["words"] == WORDS
