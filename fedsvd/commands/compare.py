"""``fedsvd compare``: run every contender on every task, budget and seed, and tabulate means and standard errors."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsvd.config.compose import compose_compare
from fedsvd.errors import ConfigError
from fedsvd.report.literal import literal


def run(arguments: Sequence[str]) -> None:
    """Run the comparison that the overrides describe, or resume an interrupted one.

    Raises:
        ConfigError: A key, type or value is invalid; raised before anything runs.
    """
    for argument in arguments:
        if argument.startswith(("-", "hydra.")):
            raise ConfigError(
                f"fedsvd compare does not accept {argument!r}: it accepts only KEY=VALUE overrides; set the output "
                "directory with run_dir=DIR."
            )
    config, settings = compose_compare(arguments)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.comparison import run_comparison
    from fedsvd.report.comparison import write_report

    folder = Path(config.run_dir or "runs/compare")
    # The prefixes + and ~ add and remove contenders and tasks, as in +compare.contenders.NAME=…
    overrides = [item for item in arguments if not item.lstrip("+~").startswith(("compare.", "run_dir="))]
    if not any(item.startswith("experiment=") for item in overrides):
        overrides = ["experiment=compare", *overrides]
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("")

        def report_progress(phase: str, done: int, total: int) -> None:
            progress.update(bar, description=phase, completed=done, total=total)
            if not console.is_terminal and done % 20 == 0:
                console.print(f"{phase} {done}/{total}")

        rows = run_comparison(overrides, settings, folder, report_progress)
    report = write_report(rows, settings, folder, shlex.join(["fedsvd", "compare", *arguments]))
    console.print(literal(report.read_text(encoding="utf-8"), keep="\n"), soft_wrap=True)
    console.print(literal(f"output directory  {folder}"), soft_wrap=True)
