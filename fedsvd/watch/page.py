"""The page of a run: what changes every second, and the parts of the report, which change with each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsvd.errors import FedSVDError
from fedsvd.report import run_sections
from fedsvd.report.document import Section, kind_of
from fedsvd.report.loaded_runs import Run, read_run
from fedsvd.report.privacy_statement import statement_section
from fedsvd.report.templates import environment
from fedsvd.runs.client_status import read_statuses
from fedsvd.runs.folder import RunFolder, read_json
from fedsvd.watch import progress
from fedsvd.watch.templates import TEMPLATES

# Figures are drawn at most in this share of the time, since the run may need the processor.
_SHARE = 0.1


class Page:
    """The page of one run directory, which another process writes.

    Args:
        folder: The run directory; it may not have a round yet.
        title: What is watched.
        problem: Returns why nothing new can arrive; empty if all is well.
        clock: Returns the Unix time.
    """

    def __init__(
        self,
        folder: RunFolder,
        title: str,
        problem: Callable[[], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._title = title
        self._problem = problem
        self._clock = clock
        self._drawn: tuple[float, ...] = ()
        self._due = 0.0
        self._sections: Sequence[Section] = ()
        self._read: tuple[tuple[float, ...], Run | None, str] = ((), None, "")
        self.version = 0
        self._templates = environment(TEMPLATES)

    def shell(self, nonce: str) -> str:
        """Return the whole page, whose script, with this nonce, replaces its parts."""
        values = self._live_values() | self._report_values()
        return self._render("watch.html", title=self._title, nonce=nonce, version=self.version, **values)

    def live(self) -> str:
        """Return the part that shows how far the run is now."""
        return self._render("live.html", **self._live_values())

    def report(self) -> str:
        """Return the parts of the report, as of the last rounds; `version` changes with them."""
        return self._render("sections.html", **self._report_values())

    def _live_values(self) -> dict[str, Any]:
        run, problem = self._run()
        now, statuses = self._clock(), read_statuses(read_json(self._folder.statuses))
        changed = max([*self._stamps(), *_times(self._folder.statuses)], default=now)
        return {
            "subject": progress.subject(run) if run else "",
            "state": progress.state(read_json(self._folder.record), run, changed, now),
            "tiles": progress.tiles(run) if run else [],
            "clients": progress.client_rows(statuses, run, now),
            "summary": progress.clients_summary(statuses),
            "problem": self._problem() or problem,
            "time": progress.clock(now),
        }

    def _report_values(self) -> dict[str, Any]:
        run, _ = self._run()
        now = self._clock()
        if run is not None and self._drawn != self._read[0] and now >= self._due:
            self._sections = _sections(run)
            self._due = self._clock() + (self._clock() - now) / _SHARE
            self._drawn = self._read[0]
            self.version += 1
        return {"sections": self._sections, "kind_of": kind_of}

    def _run(self) -> tuple[Run | None, str]:
        """Return the run as it is now, or None, and why it cannot be shown."""
        stamp = self._stamps()
        if stamp != self._read[0]:
            self._read = (stamp, *self._load())
        return self._read[1:]

    def _load(self) -> tuple[Run | None, str]:
        if not self._folder.metrics.exists() or not self._folder.config.exists():
            return None, ""
        try:
            run = read_run(self._folder.root, self._folder.root)
        except FedSVDError as error:
            return self._read[1], str(error)
        return (run if run.rows else None), ""

    def _stamps(self) -> tuple[float, ...]:
        return _times(self._folder.metrics, self._folder.record, self._folder.config)

    def _render(self, template: str, **values: object) -> str:
        return self._templates.get_template(template).render(**values)


def _times(*files: Path) -> tuple[float, ...]:
    """Return the times at which the files that exist were changed."""
    return tuple(path.stat().st_mtime for path in files if path.exists())


def _sections(run: Run) -> list[Section]:
    return [
        run_sections.accuracy(run),
        *run_sections.privacy_spent(run),
        run_sections.costs(run),
        *run_sections.factor_spectrum(run),
        *run_sections.label_distribution(run),
        run_sections.run_configuration(run),
        statement_section(run),
    ]
