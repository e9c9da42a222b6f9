"""What a SuperLink passes on of a run, as a run directory that can be watched."""

from __future__ import annotations

import io
import threading
import time

from rich.console import Console

from fedsvd.errors import FedSVDError
from fedsvd.launch.flower_cli import Connection
from fedsvd.launch.following import follow
from fedsvd.runs.folder import RunFolder, write_json
from fedsvd.runs.record import FAILED, FINISHED

# A run that the SuperLink has lost is resumed as another run within this time, if somebody follows it.
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
        except FedSVDError as error:
            self._problem = str(error)
            return
        # Flower's details of a complete run are "N/A".
        state, reason = (FINISHED, None) if ended.is_complete else (FAILED, ended.details)
        write_json(self._folder.record, {"state": state, "reason": reason})
        if not self._folder.metrics.exists():
            self._problem = (
                f"run {self._run_id} has ended and said nothing of its rounds: only runs that are started with fedsvd "
                "train federation=remote do."
            )

    def _finds_resumed(self) -> bool:
        self._problem = f"run {self._run_id} was given up by the SuperLink; waiting for a run that resumes it."
        deadline = time.monotonic() + _RESUMED_WITHIN_S
        while time.monotonic() < deadline:
            newest = self._connection.newest_run()
            if newest is not None and newest != self._run_id:
                self._run_id, self._problem = newest, ""
                return True
            time.sleep(_POLL_S)
        return False
