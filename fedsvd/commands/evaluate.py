"""``fedsvd evaluate``: how good a finished run's model is, on its own held-out texts or on others."""

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

_USAGE = "fedsvd evaluate RUN_FOLDER [data=… data.KEY=VALUE …] [--all] [--json] [--device DEVICE]"
_MAY_CHANGE = ("data", "seed", "train.eval_batch_size")


def run(words: Sequence[str]) -> None:
    """Evaluate.

    Raises:
        ConfigError: Words that are not understood, or a folder that is no run's.
        RunError: A run that has no final model.
        DataError: Data that cannot be had, or whose classes are not the model's.
    """
    parser = CommandParser("evaluate", _USAGE)
    parser.add_argument("folder")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device")
    given = parser.parse_intermixed_args(list(words))
    _check_words(given.overrides)
    # Imported late: it loads torch and transformers, which a wrong word should not have to wait for.
    from fedsvd.launch import saved_overrides
    from fedsvd.trained.evaluation import evaluate_trained_model, load_labeled_texts
    from fedsvd.trained.run import load_trained_model, read_run

    finished = read_run(Path(given.folder))
    config = compose([*saved_overrides(Path(given.folder)), *given.overrides]) if given.overrides else finished.config
    if given.all and config.data == finished.config.data:
        raise ConfigError("--all is for other data than the run's own, most of which it was trained on: name them.")
    found = evaluate_trained_model(
        load_trained_model(finished, given.device), load_labeled_texts(config, given.all), config
    )
    if given.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    console = Console()
    measured = f"loss {found.loss:.3f}" + ("" if found.perplexity is None else f"  perplexity {found.perplexity:.2f}")
    kind = "exact match" if finished.generates_text else "accuracy"
    console.print(f"{kind} {found.accuracy:.1%}  {measured}  ({found.num_examples:,} texts)", highlight=False)
    if found.classes:
        table = Table(title="by class")
        for heading in ("class", "texts", "precision", "recall"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for score in found.classes:
            table.add_row(score.name, f"{score.num_examples:,}", _share(score.precision), _share(score.recall))
        console.print(table)


def _check_words(overrides: Sequence[str]) -> None:
    for word in overrides:
        key = word.partition("=")[0]
        if key.partition(".")[0] not in _MAY_CHANGE and key not in _MAY_CHANGE:
            raise ConfigError(
                f"{word} is not for fedsvd evaluate: the model is the run's; data, seed and train.eval_batch_size can "
                "be chosen."
            )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
