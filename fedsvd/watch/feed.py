"""What a SuperLink passes on of a run, as a run directory that can be watched."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Console

from fedsvd.config.compose import read_yaml
from fedsvd.config.flat import flatten
from fedsvd.errors import FedSVDError
from fedsvd.launch.flower_cli import Connection
from fedsvd.launch.following import follow
from fedsvd.report.labels import planned_rounds
from fedsvd.runs.best_round import early_stop
from fedsvd.runs.events import read_event
from fedsvd.runs.folder import RunFolder, read_rows, write_json
from fedsvd.runs.record import FAILED, FINISHED

# A run that the SuperLink has lost is submitted again within this time, if somebody follows it.
_RESUMED_WITHIN_S, _POLL_S = 120.0, 5.0


class Feed(threading.Thread):
    """Follow a run of a SuperLink, and write what it says to a directory.

    Args:
        connection: The SuperLink.
        run_id: Flower's ID of the run.
        folder: The directory, which is empty.
    """

    def __init__(self, connection: Connection, run_id: int, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._run_id = run_id
        self._folder = folder
        self._problem = ""

    def problem(self) -> str:
        """Return why nothing new arrives; empty if all is well."""
        return self._problem

    def run(self) -> None:
        """Follow the run, and the runs that resume it after the SuperLink has lost it."""
        # Nobody reads what the run prints.
        console = Console(file=io.StringIO())
        try:
            while True:
                ended = follow(self._connection, self._run_id, self._folder, console)
                if not ended.is_lost or not self._finds_resumed():
                    break
            # Flower's details of a complete run are "N/A".
            end = (
                {"state": FINISHED, **_stopped_early(self._folder)}
                if ended.is_complete
                else {"state": FAILED, "reason": ended.details}
            )
        except FedSVDError as error:
            self._problem = str(error)
            return
        write_json(self._folder.record, end)
        if not self._folder.metrics.exists():
            self._problem = (
                f"run {self._run_id} has ended and said nothing of its rounds: only runs that are started with fedsvd "
                "train federation=remote do."
            )

    def _finds_resumed(self) -> bool:
        """Wait for a later run in the run directory of the lost one, and watch that one from now on."""
        lost = f"run {self._run_id} was given up by the SuperLink"
        self._problem = f"{lost}; waiting for a run that resumes it."
        own = _run_dir(self._folder.config.read_text(encoding="utf-8")) if self._folder.config.exists() else None
        others: set[int] = set()
        deadline = time.monotonic() + _RESUMED_WITHIN_S
        while own is not None and time.monotonic() < deadline:
            for run_id in self._connection.later_runs(self._run_id):
                if run_id in others:
                    continue
                # Asked for first: what a run that has ended has printed is complete.
                is_over = self._connection.status(run_id)[0].startswith("finished")
                started = _started(self._connection.printed(run_id))
                if started is not None and _run_dir(started) == own:
                    self._run_id, self._problem = run_id, ""
                    return True
                if started is not None or is_over:
                    others.add(run_id)
                else:
                    # Before it starts, a run waits for the lost one to end, and loads its model.
                    deadline = time.monotonic() + _RESUMED_WITHIN_S
            time.sleep(_POLL_S)
        self._problem = f"{lost}, and no run has resumed it. Once one does, watch that one: start fedsvd watch again."
        return False


def _started(lines: Iterable[str]) -> str | None:
    """Return the configuration (YAML) of a run that prints these lines; None if it has not started yet."""
    events = filter(None, map(read_event, lines))
    return next((str(event["config"]) for event in events if event.get("event") == "started"), None)


def _run_dir(config: str) -> str | None:
    """Return the run directory on the server that a configuration (YAML) names; None if it names none."""
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    return values.get("run_dir") if isinstance(values, dict) else None


def _stopped_early(folder: RunFolder) -> dict[str, Any]:
    """Return what the record of a complete run says of rounds that were left out; it follows from the rows."""
    if not folder.config.exists() or not folder.metrics.exists():
        return {}
    config = flatten(read_yaml(folder.config))
    patience = config.get("train.early_stopping")
    if patience is None:
        return {}
    stopped = early_stop(read_rows(folder.metrics), config["model.task"], patience, planned_rounds(config))
    return {"stopped_early": asdict(stopped)} if stopped else {}
