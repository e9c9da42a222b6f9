"""The report of a run in progress is written after its rounds, in a small share of the time."""

from pathlib import Path

import pytest
from test_report_page import write_run

from fedsvd.report.running import RunningReport
from fedsvd.runs.folder import RunFolder


def test_report_is_written_after_rounds_in_at_most_three_percent_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written, cost, round_s = 0.0, [], 2.0, 10.0
    report = RunningReport(RunFolder(tmp_path), clock=lambda: now)

    def write() -> None:
        nonlocal now
        now += cost
        written.append(now)

    monkeypatch.setattr(report, "write", write)
    for _ in range(300):
        now += round_s
        report.round_done({})
    assert 0.8 * 0.03 < cost * len(written) / now <= 0.03
    # After each round, if it lasts long enough.
    written.clear()
    for _ in range(20):
        now += 70.0
        report.round_done({})
    assert len(written) == 20


def test_report_of_a_run_in_progress_says_so_and_a_failure_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(write_run(tmp_path / "run", "train.num_rounds=9", state="running"))
    RunningReport(folder).write()
    page = folder.report.read_text(encoding="utf-8")
    assert "after 2 of 9 rounds" in page
    assert "This run is unfinished" in page
    folder.metrics.write_text("damaged")
    RunningReport(folder).write()
    assert "the run and its results are not affected" in caplog.text
    assert folder.report.read_text(encoding="utf-8") == page
