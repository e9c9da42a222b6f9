"""``report.html`` of a run that is in progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fedsvd.report.document import to_html
from fedsvd.report.figures import log_failure
from fedsvd.report.loaded_runs import read_run
from fedsvd.report.run_sections import run_sections
from fedsvd.runs.folder import RunFolder, replace_text

# A report takes about a second, and is left out after a round that is too short for it.
_SHARE = 0.03
_FIRST_COST_S = 1.0


class RunningReport:
    """Write the report of a run after its rounds, in at most 3 % of the time.

    Args:
        folder: The run directory.
        clock: Returns seconds.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.perf_counter) -> None:
        self._folder = folder
        self._clock = clock
        self._due = clock() + _FIRST_COST_S / _SHARE

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Write the report, unless the last one was written too recently."""
        started = self._clock()
        if started >= self._due:
            self.write()
            now = self._clock()
            self._due = now + (now - started) / _SHARE

    @log_failure
    def write(self) -> None:
        """Write the report, atomically."""
        run = read_run(self._folder.root, self._folder.root)
        replace_text(self._folder.report, to_html(f"fedsvd report: {self._folder.root.name}", run_sections(run)))
