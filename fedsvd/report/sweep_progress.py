"""Progress of a sweep, read from its run directories, so that it covers the runs of every launcher and process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsvd.config.compose import read_yaml
from fedsvd.config.flat import flatten
from fedsvd.config.task import ACCURACY, last_value, score_metric
from fedsvd.errors import ConfigError
from fedsvd.privacy.claim import unprotected_rounds
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.literal import add_literal_row, literal
from fedsvd.runs.folder import RunFolder, read_json, read_rows

_END_STATES = ("finished", "failed")


@dataclass(frozen=True)
class RunStatus:
    """State and progress of one run of a sweep.

    Attributes:
        name: Path of the run directory relative to the sweep directory.
        state: ``running``, ``finished`` or ``failed``.
        done: Fraction of the rounds that are done; 1 if the run has ended.
        epsilon: The largest ε spent so far.
        score: The last held-out value of the metric by which runs are compared, for people.
        reason: Reason of a failure.
        modified_at: Modification time of the run's record.
        num_rounds: Total number of rounds; 0 if not known yet.
    """

    name: str
    state: str
    done: float
    epsilon: float | None = None
    score: str = ""
    reason: str | None = None
    modified_at: float = 0.0
    num_rounds: int = 0

    def summary(self) -> str:
        """Return the latest score and ε, or the reason of a failure, on one line."""
        if self.state == "failed":
            return f"failed: {self.reason}"
        parts = [self.score] if self.score else []
        if self.epsilon is not None:
            parts.append(f"ε ≤ {rounded_up(self.epsilon, 2)}")
        return "  ".join(parts)


def read_statuses(folder: Path, previous: Mapping[str, RunStatus]) -> list[RunStatus]:
    """Read the status of all runs in a sweep directory.

    Args:
        folder: Sweep directory.
        previous: Result of an earlier call, by name; runs that had ended then and have not changed are not read again.
    """
    # Not rglob, which fails at a directory that is removed meanwhile, such as an older checkpoint.
    names = sorted(
        Path(root).relative_to(folder).as_posix() for root, _, files in os.walk(folder) if "run.json" in files
    )
    return [_read_status(folder, name, previous.get(name)) for name in names]


def _read_status(folder: Path, name: str, previous: RunStatus | None) -> RunStatus:
    paths, modified_at, rows = RunFolder(folder / name), 0.0, []
    with suppress(OSError):
        modified_at = paths.record.stat().st_mtime
    if previous is not None and previous.state in _END_STATES and previous.modified_at == modified_at:
        return previous
    num_rounds = previous.num_rounds if previous else 0
    metric = ACCURACY
    with suppress(OSError, ConfigError, KeyError):
        config = flatten(read_yaml(paths.config))
        num_rounds, metric = int(config["train.num_rounds"]), score_metric(config)
    with suppress(OSError, ValueError):
        rows = read_rows(paths.metrics)
    record = read_json(paths.record)
    state = str(record.get("state", "running"))
    done = rows[-1]["server_round"] / max(1, num_rounds) if rows else 0.0
    score = last_value(rows, metric)
    return RunStatus(
        name,
        state,
        1.0 if state in _END_STATES else min(1.0, done),
        rows[-1]["epsilon"] if rows and not unprotected_rounds(rows) else None,
        "" if score is None else f"{metric.label} {metric.format(score)}",
        record.get("reason"),
        modified_at,
        num_rounds,
    )


def seconds_left(work_done: float, work_before: float, total: float, elapsed: float) -> float | None:
    """Estimate the remaining time from the speed of this process so far.

    Args:
        work_done: Number of runs that have ended, plus the completed fractions of the others.
        work_before: The same when this process started.
        total: Total number of runs.
        elapsed: Seconds since this process started.

    Returns:
        None if no work has been done yet, so that no estimate is possible.
    """
    work_here = work_done - work_before
    return elapsed * max(0.0, total - work_done) / work_here if work_here > 0 else None


def format_duration(seconds: float | None) -> str:
    """Format a number of seconds as seconds, minutes or hours."""
    if seconds is None:
        return "?"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 100 else f"{hours:g} h"


@dataclass
class SweepReporter:
    """Report the progress of a sweep from a thread that reads its run directories.

    Attributes:
        folder: Sweep directory.
        total: Total number of runs.
        console: Where to print; created before the runs start, since runs may redirect standard output.
        poll_interval_s: Seconds between two reads of the run directories.
    """

    folder: Path
    total: int
    console: Console
    poll_interval_s: float = 1.0
    _previous: dict[str, RunStatus] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> SweepReporter:
        ended = _ended(self._read_statuses())
        # Runs that failed earlier are run again, so they do not count as done.
        self._failed_before = {(status.name, status.modified_at) for status in ended if status.state == "failed"}
        self._reported = {status.name for status in ended if status.state == "finished"}
        self._before = float(len(self._reported))
        finished = f", {self._before:g} already finished" if self._before else ""
        self.console.print(literal(f"sweep of {self.total} runs{finished}  {self.folder}"), soft_wrap=True)
        self._started = time.monotonic()
        columns = (TextColumn("runs {task.fields[ended]}/{task.total:g}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[remaining]}"), console=self.console)
        self._bar = self._progress.add_task("", total=float(self.total), ended=f"{self._before:g}", remaining="")
        self._live = Live(self._progress, console=self.console, redirect_stdout=False, redirect_stderr=False)
        if self.console.is_terminal:
            self._live.start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.refresh()
        if self.console.is_terminal:
            self._live.stop()

    def refresh(self) -> None:
        """Read the run directories and report every run that has ended since the last call."""
        statuses = [s for s in self._read_statuses() if (s.name, s.modified_at) not in self._failed_before]
        work, ended = sum(status.done for status in statuses), _ended(statuses)
        seconds = seconds_left(work, self._before, self.total, time.monotonic() - self._started)
        remaining = "" if seconds is None else f"{format_duration(seconds)} left"
        self._progress.update(self._bar, completed=work, ended=str(len(ended)), remaining=remaining)
        running = [status for status in statuses if status.state not in _END_STATES]
        if self.console.is_terminal:
            self._live.update(Group(self._progress, _running_table(running[:12])))
        for status in ended:
            # By name alone: the record may be written once more after its end state was read.
            if status.name not in self._reported:
                self._reported.add(status.name)
                estimate = f"  about {remaining}" if remaining and len(ended) < self.total else ""
                line = f"run {len(self._reported)}/{self.total}  {status.name}  {status.summary()}{estimate}"
                self.console.print(literal(line), soft_wrap=True)

    def _watch(self) -> None:
        while not self._stop.wait(self.poll_interval_s):
            self.refresh()

    def _read_statuses(self) -> list[RunStatus]:
        statuses = read_statuses(self.folder, self._previous)
        self._previous = {status.name: status for status in statuses}
        return statuses


def _ended(statuses: Iterable[RunStatus]) -> list[RunStatus]:
    return [status for status in statuses if status.state in _END_STATES]


def _running_table(running: Sequence[RunStatus]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for status in running:
        add_literal_row(table, (f"{status.done:.0%}", status.name, status.summary()))
    return table
