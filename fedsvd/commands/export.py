"""``fedsvd export``: a finished run's model for those who do not have fedsvd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedsvd.commands.arguments import Arguments

_USAGE = "fedsvd export RUN_FOLDER --to FOLDER [--merge]"


def run(words: Sequence[str]) -> None:
    """Export.

    Raises:
        ConfigError: Words that are not understood, a folder that is no run's, or one that is not empty.
        RunError: A run that has no final model.
        ModelError: The base model cannot be loaded.
    """
    parser = Arguments("export", _USAGE)
    parser.add_argument("folder")
    parser.add_argument("--to", required=True)
    parser.add_argument("--merge", action="store_true")
    given = parser.parse_args(list(words))
    # Imported late: it loads torch and transformers, which a wrong word should not have to wait for.
    from fedsvd.trained.export import export_model
    from fedsvd.trained.run import read_run

    export_model(read_run(Path(given.folder)), Path(given.to), merge=given.merge)
    what = "the merged model" if given.merge else "the adapter"
    Console().print(f"{what}, its tokenizer and its card (README.md) are in {given.to}", soft_wrap=True)
