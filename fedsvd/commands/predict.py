"""``fedsvd predict``: predict labels of, or generate answers to, texts with a finished run's model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsvd.commands.arguments import CommandParser
from fedsvd.commands.output import print_note, to_json, warn_left_out
from fedsvd.config import Config
from fedsvd.config.model import MAX_NEW_TOKENS
from fedsvd.errors import ConfigError
from fedsvd.report.literal import literal

if TYPE_CHECKING:
    from fedsvd.data.text_files import TextLayout


def run(arguments: Sequence[str]) -> None:
    """Print the prediction, such as a label and its probability, or the generated answer, for each text.

    Raises:
        ConfigError: The arguments are invalid, the directory is not a run directory, or the texts are not what the
            model expects.
        RunError: The run has no final model.
        DataError: The file of texts cannot be read.
    """
    options = _parse(arguments)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.report.privacy_statement import guarantee_line
    from fedsvd.trained.inputs import check_inputs
    from fedsvd.trained.prediction import check_max_new_tokens, predict
    from fedsvd.trained.run import load_trained_model, read_run

    finished = read_run(Path(options.folder), best=options.best)
    conversations, names = _read_conversations(options, finished.config)
    texts, pairs = (conversations, None) if conversations else _read_texts(options, finished.config)
    check_inputs(finished.config, texts, pairs)
    check_max_new_tokens(finished, options.max_new_tokens)
    if options.stream and not finished.generates_text:
        raise ConfigError("--stream prints answers while they are generated, and this run's model generates none.")
    console = Console()

    def show(piece: str) -> None:
        console.print(literal(piece, "bold", keep="\n\t"), end="", soft_wrap=True)

    model = load_trained_model(finished, options.device)
    on_text = show if options.stream else None
    rows = predict(model, texts, pairs, options.batch_size, on_text, options.max_new_tokens, names or None)
    # Not on standard output, which holds the predictions alone.
    guarantee = guarantee_line(Path(options.folder))
    for note in [*([f"adapter-best/: {finished.best}"] if finished.best else []), guarantee]:
        Console(stderr=True).print(literal(note), soft_wrap=True)
    _print_rows(console, rows, options)


def _print_rows(console: Console, rows: Iterable[dict[str, Any]], options: Any) -> None:
    from fedsvd.trained.outputs import summary

    cut = 0
    for row in rows:
        cut += not row.get("is_complete", True)
        if options.json:
            print(to_json(row), flush=True)
        else:
            # An answer may have several lines.
            shown = "" if options.stream else summary(row)
            line = literal(shown, "bold", keep="\n\t").append(literal(f"  ← {_shorten(_asked(row))}", "dim"))
            console.print(line, soft_wrap=True)
    if cut:
        print_note(
            f"answers that were cut: {cut}. An answer has at most {options.max_new_tokens or MAX_NEW_TOKENS} tokens "
            "(--max-new-tokens N) and ends at the model's last position.",
            style="yellow",
        )


def _parse(arguments: Sequence[str]) -> Any:
    parser = CommandParser("predict")
    parser.add_argument("folder", metavar="RUN_DIR")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--text-pair", action="append", default=[])
    parser.add_argument("--file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--separator")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int)
    options = parser.parse_args(list(arguments))
    if bool(options.text) == bool(options.file):
        parser.error("exactly one of --text and --file is required")
    if options.stream and options.json:
        parser.error("--stream and --json exclude each other: a JSON object has the whole answer")
    if options.text_pair and len(options.text_pair) != len(options.text):
        parser.error(
            f"got {len(options.text)} --text and {len(options.text_pair)} --text-pair; give one --text-pair per --text"
        )
    if options.separator is not None and len(options.separator) != 1 and options.separator not in ("tab", "\\t"):
        parser.error(f"--separator {options.separator!r} is invalid: expected one character, or tab")
    if options.separator is not None and not options.file:
        parser.error(f"--separator {options.separator!r} has no effect without --file: leave it out")
    for name, value in {"--batch-size": options.batch_size, "--max-new-tokens": options.max_new_tokens}.items():
        if value is not None and value < 1:
            parser.error(f"{name} {value} is invalid: expected an integer ≥ 1")
    return options


def _read_texts(options: Any, config: Config) -> tuple[list[str], list[str] | None]:
    """Return the texts and the second texts, if there are any."""
    if options.file:
        return _read_file(options, config)
    return list(options.text), list(options.text_pair) or None


def _read_conversations(options: Any, config: Config) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Return the conversations of the file and their rows; none if the model was not trained on any, or it has none."""
    column = config.data.messages_column
    if column is None or not options.file:
        return [], []
    from fedsvd.data.text_files import read_conversations

    found = read_conversations(Path(options.file), column, _layout(options, config))
    if found is None:
        return [], []
    conversations, rows, left_out = found
    warn_left_out([left_out] if left_out.reasons else [])
    return conversations, rows


def _layout(options: Any, config: Config) -> TextLayout:
    from fedsvd.data.text_files import TextLayout

    data = config.data
    return TextLayout(
        text=(data.text_column, "text"),
        text_pair=() if data.text_pair_column is None else (data.text_pair_column, "text_pair"),
        of_words=config.model.task == "token_classification",
        pair_is_optional=data.response_column is not None,
        separator=data.separator,
        given_separator=options.separator,
    )


def _read_file(options: Any, config: Config) -> tuple[list[str], list[str] | None]:
    from fedsvd.data.text_files import read_texts

    layout = _layout(options, config)
    texts, pairs, left_out = read_texts(Path(options.file), layout)
    if layout.text_pair and pairs is None:
        raise ConfigError(
            f"this run's model expects pairs of texts, and --file {options.file} has one text per line: give a .csv, "
            f".jsonl or .parquet file with the columns {layout.text[0]} and {layout.text_pair[0]}."
        )
    warn_left_out([left_out] if left_out.reasons else [])
    return texts, pairs


def _asked(row: dict[str, Any]) -> str:
    """Return the text of a row, or the last turn of its conversation."""
    if "tokens" in row:
        return " ".join(row["tokens"])
    return str(row["messages"][-1]["content"] if "messages" in row else row["text"])


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
