"""``fedsvd compare``: every contender on every task and budget, with seeds, and a table of means and errors."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsvd.config.compose import compose_compare
from fedsvd.errors import ConfigError


def run(words: Sequence[str]) -> None:
    """Run the comparison that the overrides describe, or go on with one that was cut off.

    Raises:
        ConfigError: A key, type or value that is not allowed, before anything runs.
    """
    for word in words:
        if word.startswith(("-", "hydra.")):
            raise ConfigError(
                f"fedsvd compare takes KEY=VALUE only, not {word!r}; choose its folder with run_dir=FOLDER."
            )
    config, settings = compose_compare(words)
    # Imported late: it loads torch and transformers, which a wrong key should not have to wait for.
    from fedsvd.comparison import run_comparison
    from fedsvd.report.comparison import write_report

    folder = Path(config.run_dir or "runs/compare")
    # A contender or task is added with +compare.contenders.NAME=…
    ours = [word for word in words if not word.lstrip("+~").startswith(("compare.", "run_dir="))]
    base = ours if any(word.startswith("experiment=") for word in ours) else ["experiment=compare", *ours]
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("")

        def tell(phase: str, done: int, total: int) -> None:
            progress.update(bar, description=phase, completed=done, total=total)
            if not console.is_terminal and done % 20 == 0:
                console.print(f"{phase} {done}/{total}")

        rows = run_comparison(base, settings, folder, tell)
    report = write_report(rows, settings, folder, shlex.join(["fedsvd", "compare", *words]))
    console.print(report.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"folder  {folder}", soft_wrap=True, highlight=False)
