"""``fedsvd evaluate``: evaluate a finished run's model on its own held-out texts or on other data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedsvd.commands.arguments import CommandParser
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError

_USAGE = "fedsvd evaluate RUN_DIR [data=… data.KEY=VALUE …] [--all] [--json] [--device DEVICE]"
_ALLOWED_OVERRIDES = ("data", "seed", "train.eval_batch_size")


def run(arguments: Sequence[str]) -> None:
    """Evaluate a model and print accuracy, loss and, for a classifier, scores by class.

    Raises:
        ConfigError: The arguments are invalid, or the directory is not a run directory.
        RunError: The run has no final model.
        DataError: The data cannot be loaded, or its classes differ from the model's.
    """
    parser = CommandParser("evaluate", _USAGE)
    parser.add_argument("folder", metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device")
    options = parser.parse_intermixed_args(list(arguments))
    _check_overrides(options.overrides)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.launch import saved_overrides
    from fedsvd.trained.evaluation import evaluate_trained_model, load_labeled_texts
    from fedsvd.trained.run import load_trained_model, read_run

    finished = read_run(Path(options.folder))
    config = finished.config
    if options.overrides:
        config = compose([*saved_overrides(Path(options.folder)), *options.overrides])

    if options.all and config.data == finished.config.data:
        raise ConfigError(
            "--all is invalid for the run's own data, because the model was trained on most of it; choose other data "
            "with data=…."
        )
    result = evaluate_trained_model(
        load_trained_model(finished, options.device), load_labeled_texts(config, options.all), config
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    console = Console()
    metrics = f"loss {result.loss:.3f}" + ("" if result.perplexity is None else f"  perplexity {result.perplexity:.2f}")
    kind = "exact match" if finished.generates_text else "accuracy"
    console.print(f"{kind} {result.accuracy:.1%}  {metrics}  ({result.num_examples:,} texts)", highlight=False)
    if result.classes:
        table = Table(title="Scores by class")
        for heading in ("class", "texts", "precision", "recall"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for score in result.classes:
            table.add_row(score.name, f"{score.num_examples:,}", _percent(score.precision), _percent(score.recall))
        console.print(table)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key.partition(".")[0] not in _ALLOWED_OVERRIDES and key not in _ALLOWED_OVERRIDES:
            raise ConfigError(
                f"fedsvd evaluate does not accept {override}: the model is fixed by the run; only data, data.KEY, seed "
                "and train.eval_batch_size can be set."
            )


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
