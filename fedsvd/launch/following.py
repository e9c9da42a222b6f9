"""Follow a run on a SuperLink: print its output, keep its run directory here up to date, and reconnect as needed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live

from fedsvd.errors import RunError
from fedsvd.launch.flower_cli import Connection, strip_colors
from fedsvd.report.client_status import statuses_line
from fedsvd.report.literal import literal
from fedsvd.runs.client_status import read_statuses
from fedsvd.runs.events import apply_event, read_event
from fedsvd.runs.folder import RunFolder, read_json

_POLL_INTERVAL_S, _AWAY_INTERVAL_S, _STATUS_TIMEOUT_S = 2.0, 5.0, 1800.0
# Flower writes its own log to the same stream, each line twice. Hide it, except one copy of warnings and errors.
_FLOWER_LOG_LINE = re.compile(
    r"(INFO|DEBUG) *:|\d\d/\d\d/\d{4} \d\d:\d\d:\d\d:[A-Z]+:|Using SuperLink: |Successfully installed "
)
# Flower's details of a run whose ServerApp has not reached the SuperLink for a minute.
_NO_HEARTBEAT = "No heartbeat received"


@dataclass(frozen=True)
class Ended:
    """How a run has ended.

    Attributes:
        status: Flower's status, such as ``finished:completed``.
        details: Flower's details on it.
        rounds: The last round whose end was printed; -1 if there was none.
        log: What the run has printed, without its events.
    """

    status: str
    details: str
    rounds: int
    log: Sequence[str] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the run has completed."""
        return self.status == "finished:completed"

    @property
    def is_lost(self) -> bool:
        """Whether the SuperLink has given up the run because its ServerApp could not reach it."""
        return self.status == "finished:failed" and self.details.startswith(_NO_HEARTBEAT)


def follow(connection: Connection, run_id: int, folder: RunFolder, console: Console) -> Ended:
    """Print the run's output until it ends, and apply its events to the run directory.

    In a terminal, the last line shows what each client is doing.

    Raises:
        RunError: The SuperLink did not answer for half an hour.
    """
    output = _Output(folder, console)
    away = _Away(console)
    is_terminal = console.is_terminal
    live = Live(get_renderable=output.status, console=console, transient=True, refresh_per_second=1)
    with live if is_terminal else nullcontext():
        while True:
            output.restart()
            # Flower's command costs a second of CPU time; an absent SuperLink is only asked for the status.
            for line in () if away.lasts else connection.log(run_id):
                # Before it connects, Flower's command prints a line of its own.
                if output.is_new():
                    output.add(strip_colors(line))
            try:
                status, details = connection.status(run_id)
                away.over()
            except RunError as error:
                away.began(error)
                status, details = "unknown", ""
            if status.startswith("finished"):
                return Ended(status, details, output.rounds, output.log)
            time.sleep(_AWAY_INTERVAL_S if away.lasts else _POLL_INTERVAL_S)


class _Output:
    """What a run prints: each line is handled once, although the log starts again after a reconnect."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self._folder = folder
        self._console = console
        self._count = self._handled = 0
        self.log: list[str] = []
        self.rounds = -1

    def restart(self) -> None:
        """Expect the first line again."""
        self._count = 0

    def is_new(self) -> bool:
        """Count a line, and return whether it was not handled before."""
        self._count += 1
        return self._count > self._handled

    def add(self, line: str) -> None:
        """Apply an event to the run directory, or print a line that is not Flower's own."""
        self._handled = self._count
        event = read_event(line)
        if event is None:
            self.log.append(line)
            if not _FLOWER_LOG_LINE.match(line):
                self._console.print(literal(line), soft_wrap=True)
            return
        apply_event(event, self._folder)
        if event.get("event") == "row":
            self.rounds = event["row"]["server_round"]

    def status(self) -> RenderableType:
        """Return what each client is doing now."""
        return literal(statuses_line(read_statuses(read_json(self._folder.statuses)), time.time()), "dim")


class _Away:
    """The time for which the SuperLink does not answer: one line when it begins, and one when it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether it has begun, and is not over."""
        return self._since is not None

    def began(self, error: RunError) -> None:
        """Handle a failure to reach the SuperLink; raise it if there has been none but failures for too long."""
        if self._since is None:
            self._since = time.monotonic()
            self._console.print(
                f"the SuperLink does not answer; waiting for it for at most {_STATUS_TIMEOUT_S / 60:.0f} min, Ctrl-C "
                "stops waiting and not the run",
                style="yellow",
                soft_wrap=True,
            )
        elif time.monotonic() - self._since > _STATUS_TIMEOUT_S:
            raise error

    def over(self) -> None:
        """Handle an answer."""
        if self._since is not None:
            self._console.print(
                f"the SuperLink answers again, after {time.monotonic() - self._since:.0f} s", highlight=False
            )
            self._since = None
