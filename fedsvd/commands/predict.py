"""``fedsvd predict``: predict labels of, or generate answers to, texts with a finished run's model."""

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
    "fedsvd predict RUN_DIR (--text TEXT [--text-pair TEXT] … | --file FILE) [--json] [--device DEVICE] "
    "[--batch-size N]"
)


def run(arguments: Sequence[str]) -> None:
    """Print the label and its probability, or the generated answer, for each text.

    Raises:
        ConfigError: The arguments are invalid, or the directory is not a run directory.
        RunError: The run has no final model.
        DataError: The file of texts cannot be read.
    """
    options = _parse(arguments)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.trained.run import load_trained_model, predict, read_run

    finished = read_run(Path(options.folder))
    texts, pairs = _read_texts(options, finished.config.data.text_pair_column is not None)
    rows = predict(load_trained_model(finished, options.device), texts, pairs, options.batch_size)
    console = Console()
    for row in rows:
        if options.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            output = row["answer"] if finished.generates_text else f"{row['label']}  {row['probability']:.1%}"
            # Not printed as markup: the texts may contain brackets.
            console.print(Text.assemble((output, "bold"), (f"  ← {_shorten(row['text'])}", "dim")), soft_wrap=True)


def _parse(arguments: Sequence[str]) -> Any:
    parser = CommandParser("predict", _USAGE)
    parser.add_argument("folder", metavar="RUN_DIR")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--text-pair", action="append", default=[])
    parser.add_argument("--file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(list(arguments))
    if bool(options.text) == bool(options.file):
        parser.error("exactly one of --text and --file is required")
    if options.text_pair and len(options.text_pair) != len(options.text):
        parser.error(
            f"got {len(options.text)} --text and {len(options.text_pair)} --text-pair; give one --text-pair per --text"
        )
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size} is invalid: expected an integer ≥ 1")
    return options


def _read_texts(options: Any, expects_pairs: bool) -> tuple[list[str], list[str] | None]:
    """Return the texts and, for a model of text pairs, the second texts."""
    if options.file:
        from fedsvd.data.text_files import read_texts

        texts, pairs = read_texts(Path(options.file))
    else:
        texts, pairs = list(options.text), list(options.text_pair) or None
    if expects_pairs and pairs is None:
        raise ConfigError(
            "this run's model expects pairs of texts: give --text-pair with each --text, or a .jsonl file with text "
            "and text_pair."
        )
    if not expects_pairs and pairs is not None:
        raise ConfigError("this run's model expects single texts: remove --text-pair, or text_pair from the file.")
    return texts, pairs


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
