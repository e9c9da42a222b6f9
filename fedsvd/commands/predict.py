"""``fedsvd predict``: what a finished run's model says of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fedsvd.commands.arguments import CommandParser
from fedsvd.errors import ConfigError

_USAGE = (
    "fedsvd predict RUN_FOLDER (--text TEXT [--text-pair TEXT] … | --file FILE) [--json] [--device DEVICE] "
    "[--batch-size N]"
)


def run(words: Sequence[str]) -> None:
    """Predict.

    Raises:
        ConfigError: Words that are not understood, or a folder that is no run's.
        RunError: A run that has no final model.
        DataError: A file that cannot be read.
    """
    given = _parsed(words)
    # Imported late: it loads torch and transformers, which a wrong word should not have to wait for.
    from fedsvd.trained.run import load_trained_model, predict, read_run

    finished = read_run(Path(given.folder))
    texts, pairs = _texts(given, finished.config.data.text_pair_column is not None)
    found = predict(load_trained_model(finished, given.device), texts, pairs, given.batch_size)
    console = Console()
    for row in found:
        if given.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            said = row["answer"] if finished.generates_text else f"{row['label']}  {row['probability']:.1%}"
            # Not as markup: texts may hold brackets of their own.
            console.print(Text.assemble((said, "bold"), (f"  ← {_short(row['text'])}", "dim")), soft_wrap=True)


def _parsed(words: Sequence[str]) -> Any:
    parser = CommandParser("predict", _USAGE)
    parser.add_argument("folder")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--text-pair", action="append", default=[])
    parser.add_argument("--file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args(list(words))
    if bool(given.text) == bool(given.file):
        parser.error("give either --text or --file")
    if given.text_pair and len(given.text_pair) != len(given.text):
        parser.error(f"there are {len(given.text)} --text and {len(given.text_pair)} --text-pair")
    if given.batch_size < 1:
        parser.error(f"--batch-size {given.batch_size} is not allowed: give 1 or more")
    return given


def _texts(given: Any, of_pairs: bool) -> tuple[list[str], list[str] | None]:
    """Return texts and, for a model of pairs, their second texts."""
    if given.file:
        from fedsvd.data.text_files import read_texts

        texts, pairs = read_texts(Path(given.file))
    else:
        texts, pairs = list(given.text), list(given.text_pair) or None
    if of_pairs and pairs is None:
        raise ConfigError(
            "this run's model reads pairs of texts: give --text-pair with each --text, or a .jsonl file with text and "
            "text_pair."
        )
    if not of_pairs and pairs is not None:
        raise ConfigError("this run's model reads single texts: leave the second ones out.")
    return texts, pairs


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
