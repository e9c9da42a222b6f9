"""Following a run that the SuperLink has lost: which later run resumes it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from fedsvd.config.compose import compose, read_yaml, to_yaml
from fedsvd.launch import following
from fedsvd.launch.flower_cli import Connection
from fedsvd.runs import events
from fedsvd.runs.folder import RunFolder, read_json, read_rows
from fedsvd.watch import feed
from fedsvd.watch.feed import Feed

LOST, COMPLETED = ("finished:failed", "No heartbeat received from the task"), ("finished:completed", "N/A")
RUNNING = ("running", "")
OWN, OTHER = "/app/runs/own", "/app/runs/other"


def said(run_dir: str | None, *rounds: int) -> list[str]:
    """Return what a run in a directory prints until it has ended these rounds."""
    overrides = ["experiment=smoke", *([f"run_dir={run_dir}"] if run_dir else [])]
    rows = [events.row_event({"server_round": number}) for number in rounds]
    return ["loading", events.started_event(to_yaml(compose(overrides))), *rows]


class Scripted(Connection):
    """A connection with runs 7, 8, …: what each prints, and how it has ended."""

    def __init__(self, runs: Mapping[int, tuple[Sequence[str], tuple[str, str]]]) -> None:
        super().__init__("lab", None)
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "followed", [])

    def later_runs(self, run_id: int) -> list[int]:
        return [number for number in self.runs if number > run_id]  # type: ignore[attr-defined]

    def printed(self, run_id: int) -> list[str]:
        return list(self.runs[run_id][0])  # type: ignore[attr-defined]

    def log(self, run_id: int) -> Iterator[str]:
        self.followed.append(run_id)  # type: ignore[attr-defined]
        yield from self.printed(run_id)

    def status(self, run_id: int) -> tuple[str, str]:
        return self.runs[run_id][1]  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_INTERVAL_S", 0)
    monkeypatch.setattr(feed, "_RESUMED_WITHIN_S", 0.1)
    monkeypatch.setattr(feed, "_POLL_S", 0.01)


def test_a_lost_run_is_continued_by_the_later_run_in_its_directory(tmp_path: Path) -> None:
    connection = Scripted({
        7: (said(OWN, 0, 1), LOST), 8: (said(OTHER, 0, 1, 2), RUNNING), 9: ([], COMPLETED), 10: (said(OWN, 0, 1), LOST),
        11: (said(OWN, 0, 1, 2), COMPLETED), 12: (said(OTHER), RUNNING),
    })  # fmt: skip
    watched = Feed(connection, 7, RunFolder(tmp_path))
    watched.run()

    assert connection.followed == [7, 10, 11]  # type: ignore[attr-defined]
    assert watched.problem() == ""
    assert read_json(RunFolder(tmp_path).record)["state"] == "finished"
    assert [row["server_round"] for row in read_rows(RunFolder(tmp_path).metrics)] == [0, 1, 2]


@pytest.mark.parametrize(("run_dir", "other"), [(OWN, OTHER), (OWN, None), (None, OTHER), (None, None)])
def test_another_run_does_not_replace_a_lost_one(run_dir: str | None, other: str | None, tmp_path: Path) -> None:
    connection = Scripted({7: (said(run_dir, 0, 1), LOST), 8: (said(other, 0), RUNNING)})
    watched, folder = Feed(connection, 7, RunFolder(tmp_path)), RunFolder(tmp_path)
    watched.run()

    assert connection.followed == [7]  # type: ignore[attr-defined]
    assert read_yaml(folder.config)["run_dir"] == run_dir
    assert [row["server_round"] for row in read_rows(folder.metrics)] == [0, 1]
    assert read_json(folder.record)["state"] == "failed"
    assert "no run has resumed it" in watched.problem()


def test_a_later_run_that_has_not_said_its_directory_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {7: (said(OWN, 0), LOST), 8: ([], RUNNING)}
    connection, waits = Scripted(runs), iter(range(20))

    def wait(seconds: float) -> None:
        # More than the time within which a run must be submitted.
        clock[0] += 1.0
        if next(waits) == 10:
            runs[8] = (said(OWN, 0, 1), COMPLETED)

    clock = [0.0]
    monkeypatch.setattr(feed.time, "sleep", wait)
    monkeypatch.setattr(feed.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(feed, "_RESUMED_WITHIN_S", 3.0)
    Feed(connection, 7, RunFolder(tmp_path)).run()

    assert connection.followed == [7, 8]  # type: ignore[attr-defined]
