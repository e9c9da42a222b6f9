"""``fedsvd evaluate``: evaluate a finished run's model on its own held-out texts or on other data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedsvd.commands.arguments import CommandParser
from fedsvd.commands.evaluated_data import check_overrides, load_labeled, plan_evaluation
from fedsvd.commands.output import print_note, to_json, warn_left_out
from fedsvd.config.task import TASKS, Task
from fedsvd.report.literal import add_literal_row

if TYPE_CHECKING:
    from fedsvd.trained.evaluation import EvaluationResult


def run(arguments: Sequence[str]) -> None:
    """Evaluate a model and print its metrics, its loss and, for a classifier, scores by class.

    If an argument names data, all of their rows are scored, whatever limits and splits the run had for its own.

    Raises:
        ConfigError: The arguments are invalid, or the directory is not a run directory.
        RunError: The run has no final model, or its directory is damaged.
        DataError: The data cannot be loaded, have classes that the model does not know, or are the run's own and have
            changed.
    """
    parser = CommandParser("evaluate")
    parser.add_argument("folder", metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--best", action="store_true")
    options = parser.parse_intermixed_args(list(arguments))
    check_overrides(options.overrides)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.trained.evaluation import evaluate_trained_model
    from fedsvd.trained.run import load_trained_model, read_run

    finished = read_run(Path(options.folder), best=options.best)
    plan = plan_evaluation(finished.folder.root, finished.config, options.overrides, every_split=options.all)
    labeled = load_labeled(plan, finished, every_split=options.all)
    print_note(f"scoring {len(labeled.rows):,} texts: {labeled.description}")
    warn_left_out([*labeled.left_out, *plan.warnings])
    if finished.best:
        print_note(f"adapter-best/: {finished.best}")
    result = evaluate_trained_model(load_trained_model(finished, options.device), labeled.rows, plan.config)
    if options.json:
        print(to_json(dataclasses.asdict(result)))
    else:
        _print_result(result, TASKS[plan.config.data.task_name(finished.config.model.task)])


def _print_result(result: EvaluationResult, task: Task) -> None:
    console = Console()
    parts = [
        f"{item.label} {item.format(result.metrics[item.key])}" for item in task.metrics if item.key in result.metrics
    ]
    parts.append(f"loss {result.loss:.3f}")
    parts += [] if result.perplexity is None else [f"perplexity {result.perplexity:.2f}"]
    console.print(f"{'  '.join(parts)}  ({result.num_examples:,} texts)", highlight=False)
    if result.classes:
        table = Table(title="Scores by class")
        for heading in ("class", "texts", "precision", "recall"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for score in result.classes:
            cells = (score.name, f"{score.num_examples:,}", _percent(score.precision), _percent(score.recall))
            add_literal_row(table, cells)
        console.print(table)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
