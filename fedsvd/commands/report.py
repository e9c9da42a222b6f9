"""``fedsvd report``: write a report on one run, or on all runs below the given directories."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedsvd.commands.usage import command_usage
from fedsvd.errors import ConfigError
from fedsvd.report.document import write_report
from fedsvd.report.literal import literal
from fedsvd.report.loaded_runs import find_runs
from fedsvd.report.sweep_sections import report_sections


def run(arguments: Sequence[str]) -> None:
    """Write ``report.html`` and ``report.md``.

    Raises:
        ConfigError: The arguments are invalid.
        RunError: A directory contains no run, or its files cannot be read.
    """
    folders, target = _parse(list(arguments))
    runs = find_runs(folders)
    if target is None:
        timestamp = datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
        target = folders[0] if len(folders) == 1 else Path("runs/report") / timestamp
    subject = folders[0].resolve().name if len(folders) == 1 else f"{len(folders)} directories"
    html, markdown = write_report(f"fedsvd report: {subject}", report_sections(runs), target)
    console = Console()
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    console.print(literal(f"wrote a report on {count}: {html}, {markdown}"), soft_wrap=True)


def _parse(arguments: list[str]) -> tuple[list[Path], Path | None]:
    """Return the directories to report on and the value of ``--to`` (None if absent)."""
    target = None
    if "--to" in arguments:
        index = arguments.index("--to")
        if index + 1 == len(arguments):
            raise ConfigError(f"--to needs a directory. Usage: {command_usage('report')}")
        target = Path(arguments[index + 1])
        del arguments[index : index + 2]
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown or not arguments:
        problem = f"fedsvd report has no option {unknown[0]}" if unknown else "fedsvd report needs a directory"
        raise ConfigError(f"{problem}. Usage: {command_usage('report')}")
    return [Path(argument) for argument in arguments], target
