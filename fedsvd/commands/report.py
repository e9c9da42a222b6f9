"""``fedsvd report``: one page on a run, or on all runs below the folders that are named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedsvd.errors import ConfigError
from fedsvd.report.document import write_report
from fedsvd.report.loaded_runs import find_runs
from fedsvd.report.sweep_sections import report_sections

_USAGE = "fedsvd report RUN_OR_SWEEP_FOLDER… [--to FOLDER]"


def run(words: Sequence[str]) -> None:
    """Write ``report.html`` and ``report.md``.

    Raises:
        ConfigError: Words that are not understood.
        RunError: A folder that holds no run, or one whose files cannot be read.
    """
    folders, to = _read(list(words))
    runs = find_runs(folders)
    if to is None:
        to = folders[0] if len(folders) == 1 else Path("runs/report") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
    titled = folders[0].resolve().name if len(folders) == 1 else f"{len(folders)} folders"
    page, told = write_report(f"fedsvd report: {titled}", report_sections(runs), to)
    console = Console()
    said = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    console.print(f"{said}  {page}  {told}", soft_wrap=True, highlight=False, markup=False)


def _read(words: list[str]) -> tuple[list[Path], Path | None]:
    to = None
    if "--to" in words:
        place = words.index("--to")
        if place + 1 == len(words):
            raise ConfigError(f"--to needs a folder; write {_USAGE}.")
        to = Path(words[place + 1])
        del words[place : place + 2]
    wrong = [word for word in words if word.startswith("-")]
    if wrong or not words:
        said = f"fedsvd report has no option {wrong[0]}" if wrong else "fedsvd report needs a folder"
        raise ConfigError(f"{said}; write {_USAGE}.")
    return [Path(word) for word in words], to
