"""Live progress of a whole sweep, read from its run folders: it sees the runs of every launcher, in every process."""

from __future__ import annotations

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
from fedsvd.errors import ConfigError
from fedsvd.report.tables import rounded_up
from fedsvd.runs.folder import RunFolder, read_json, read_rows

_OVER = ("finished", "failed")


@dataclass(frozen=True)
class RunStatus:
    """How far one run of a sweep has come.

    Attributes:
        name: Its folder below the sweep's.
        state: ``running``, ``finished`` or ``failed``.
        done: Rounds done as a share of all; 1 where the run is over.
        epsilon: The largest ε spent so far.
        accuracy: The last held-out accuracy.
        reason: Why it failed.
        changed: When its record was last written.
        num_rounds: Rounds in all; 0 where that is not known yet.
    """

    name: str
    state: str
    done: float
    epsilon: float | None = None
    accuracy: float | None = None
    reason: str | None = None
    changed: float = 0.0
    num_rounds: int = 0

    def said(self) -> str:
        """The newest numbers in a few words."""
        if self.state == "failed":
            return f"failed: {self.reason}"
        parts = [] if self.accuracy is None else [f"accuracy {self.accuracy:.1%}"]
        if self.epsilon is not None:
            parts.append(f"ε ≤ {rounded_up(self.epsilon, 2)}")
        return "  ".join(parts)


def statuses(folder: Path, known: Mapping[str, RunStatus]) -> list[RunStatus]:
    """Look at all runs below a sweep's folder.

    Args:
        folder: The sweep's.
        known: What an earlier look found, by name; runs that were over then and have not changed are not read again.
    """
    names = [path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("run.json"))]
    return [_status(folder, name, known.get(name)) for name in names]


def _status(folder: Path, name: str, known: RunStatus | None) -> RunStatus:
    paths, changed, rows = RunFolder(folder / name), 0.0, []
    with suppress(OSError):
        changed = paths.record.stat().st_mtime
    if known is not None and known.state in _OVER and known.changed == changed:
        return known
    num_rounds = known.num_rounds if known else 0
    with suppress(OSError, ConfigError, KeyError):
        num_rounds = num_rounds or int(read_yaml(paths.config)["train"]["num_rounds"])
    with suppress(OSError, ValueError):
        rows = read_rows(paths.metrics)
    record = read_json(paths.record)
    state = str(record.get("state", "running"))
    done = rows[-1]["server_round"] / max(1, num_rounds) if rows else 0.0
    measured = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    return RunStatus(
        name,
        state,
        1.0 if state in _OVER else min(1.0, done),
        rows[-1]["epsilon"] if rows else None,
        measured[-1] if measured else None,
        record.get("reason"),
        changed,
        num_rounds,
    )


def seconds_left(work_done: float, work_before: float, total: float, elapsed: float) -> float | None:
    """Estimate the time that is left: what this process has done so far tells how fast it is.

    Args:
        work_done: Runs that are over, and shares of those that are not.
        work_before: The same when this process started.
        total: Runs in all.
        elapsed: Seconds since then.

    Returns:
        None before anything can be told.
    """
    fresh = work_done - work_before
    return elapsed * max(0.0, total - work_done) / fresh if fresh > 0 else None


def duration(seconds: float | None) -> str:
    """Write a time for people."""
    if seconds is None:
        return "?"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 100 else f"{hours:g} h"


@dataclass
class SweepReporter:
    """Tell of a sweep as it goes on, from a thread that reads its folders.

    Attributes:
        folder: The sweep's.
        total: Runs in all.
        console: Where to write; the standard output of the moment it was made, which runs may redirect.
        every: Seconds between two looks.
    """

    folder: Path
    total: int
    console: Console
    every: float = 1.0
    _known: dict[str, RunStatus] = field(default_factory=dict)
    _told: set[tuple[str, float]] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> SweepReporter:
        earlier = self._over(self._statuses())
        # What failed before is taken up again.
        self._before = float(sum(status.state == "finished" for status in earlier))
        self._failed_before = {(status.name, status.changed) for status in earlier if status.state == "failed"}
        self._told = {(status.name, status.changed) for status in earlier}
        known = f", {self._before:g} of them finished before" if self._before else ""
        self.console.print(f"sweep of {self.total} runs{known}  {self.folder}", soft_wrap=True, highlight=False)
        self._started = time.monotonic()
        columns = (TextColumn("runs {task.fields[over]}/{task.total:g}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console)
        self._bar = self._progress.add_task("", total=float(self.total), over=f"{self._before:g}", left="")
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
        self.look()
        if self.console.is_terminal:
            self._live.stop()

    def look(self) -> None:
        """Read the folders, and tell what is new."""
        found = [s for s in self._statuses() if (s.name, s.changed) not in self._failed_before]
        work, over = sum(status.done for status in found), self._over(found)
        left = seconds_left(work, self._before, self.total, time.monotonic() - self._started)
        self._progress.update(
            self._bar, completed=work, over=str(len(over)), left="" if left is None else f"{duration(left)} left"
        )
        running = [status for status in found if status.state not in _OVER]
        if self.console.is_terminal:
            self._live.update(Group(self._progress, _running_table(running[:12])))
        for status in over:
            if (status.name, status.changed) not in self._told:
                self._told.add((status.name, status.changed))
                rest = "" if len(over) >= self.total or left is None else f"  about {duration(left)} left"
                self.console.print(
                    f"run {len(over)}/{self.total}  {status.name}  {status.said()}{rest}",
                    soft_wrap=True, highlight=False, markup=False,
                )  # fmt: skip

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            self.look()

    def _statuses(self) -> list[RunStatus]:
        found = statuses(self.folder, self._known)
        self._known = {status.name: status for status in found}
        return found

    def _over(self, found: Iterable[RunStatus]) -> list[RunStatus]:
        return [status for status in found if status.state in _OVER]


def _running_table(running: Sequence[RunStatus]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for status in running:
        table.add_row(f"{status.done:.0%}", status.name, status.said())
    return table
