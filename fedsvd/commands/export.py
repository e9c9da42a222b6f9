"""``fedsvd export``: export a finished run's model for use without fedsvd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedsvd.commands.arguments import CommandParser
from fedsvd.report.literal import literal


def run(arguments: Sequence[str]) -> None:
    """Export a model with its tokenizer and model card.

    Raises:
        ConfigError: The arguments are invalid, the directory is not a run directory, or the target is not empty.
        RunError: The run has no final model.
        ModelError: The base model cannot be loaded.
    """
    parser = CommandParser("export")
    parser.add_argument("folder", metavar="RUN_DIR")
    parser.add_argument("--to", required=True)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--best", action="store_true")
    options = parser.parse_args(list(arguments))
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.report.privacy_statement import guarantee_line
    from fedsvd.runs.storage import storage_errors
    from fedsvd.trained.export import export_model
    from fedsvd.trained.run import read_run
    from fedsvd.trained.usage import base_note

    finished = read_run(Path(options.folder), best=options.best)
    with storage_errors(Path(options.to)):
        layout = export_model(finished, Path(options.to), merge=options.merge)
    exported = "the merged model" if options.merge else "the adapter"
    line = f"wrote {exported}, its tokenizer and its model card (README.md) to {options.to}"
    console = Console()
    console.print(literal(line), soft_wrap=True)
    if note := base_note(finished, layout):
        console.print(literal(note), soft_wrap=True)
    if finished.best:
        console.print(literal(f"adapter-best/: {finished.best}"), soft_wrap=True)
    console.print(literal(guarantee_line(Path(options.folder))), soft_wrap=True)
