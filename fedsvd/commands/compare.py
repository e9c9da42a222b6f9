"""``fedsvd compare``: run every contender on every task, budget and seed, and tabulate means and standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsvd.commands.arguments import normalize
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compare_keys import check_free_keys
from fedsvd.config.compose import compose_compare
from fedsvd.config.quoting import command
from fedsvd.config.search_path import is_search_path
from fedsvd.errors import ConfigError, Interruption, RunError
from fedsvd.report.literal import literal
from fedsvd.runs.ownership import owned
from fedsvd.runs.storage import storage_errors


def run(arguments: Sequence[str]) -> None:
    """Run the comparison that the overrides describe, or resume an interrupted one.

    Raises:
        ConfigError: A key, type or value is invalid; raised before anything runs.
        RunError: Runs failed; raised after all others are done.
        Interruption: The user has interrupted the comparison.
    """
    overrides = normalize(arguments)
    for argument in overrides:
        if argument.startswith(("-", "hydra.")) and not is_search_path(argument):
            raise ConfigError(
                f"fedsvd compare does not accept {argument!r}: it accepts only KEY=VALUE overrides; set the output "
                "directory with run_dir=DIR."
            )
    config, settings = compose_compare(overrides)
    # The prefixes + and ~ add and remove contenders and tasks, as in +compare.contenders.NAME=…
    shared = [item for item in overrides if not item.lstrip("+~").startswith(("compare.", "run_dir="))]
    check_free_keys("the arguments", shared)
    folder, line = Path(config.run_dir or "runs/compare"), command(["compare", *arguments])
    try:
        with storage_errors(folder, f"continue with {line}"):
            folder.mkdir(parents=True, exist_ok=True)
            with owned(folder):
                rows = _run(shared, settings, folder, line)
    except KeyboardInterrupt:
        raise Interruption(f"finished runs are kept in {folder / 'results.jsonl'}.", f"continue with {line}") from None
    failed = [row for row in rows if row["accuracy"] is None]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(rows)} runs failed ({failed[0]['contender']} on {failed[0]['task']}: "
            f"{failed[0]['failed']}); run them again with {line}"
        )


def _run(overrides: Sequence[str], settings: CompareConfig, folder: Path, line: str) -> list[dict[str, Any]]:
    """Run the comparison, write its report, and return its rows."""
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.comparison import run_comparison
    from fedsvd.report.comparison import write_report

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
    report = write_report(rows, settings, folder, line)
    console.print(literal(report.read_text(encoding="utf-8"), keep="\n"), soft_wrap=True)
    console.print(literal(f"output directory  {folder}"), soft_wrap=True)
    return rows
