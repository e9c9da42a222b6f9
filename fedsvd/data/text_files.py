"""Reading of unlabeled texts and conversations from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsvd.data.cells import convert_cells
from fedsvd.data.conversations import NO_MESSAGES, Turn, load_conversation, to_conversation
from fedsvd.data.readers import FILE_FORMATS, read_table
from fedsvd.data.rows import Columns, LeftOut, select_rows
from fedsvd.data.table import Table
from fedsvd.data.targets import CLASS, TAGS
from fedsvd.data.text_tables import decode, split_lines
from fedsvd.data.values import is_missing
from fedsvd.errors import ConfigError, DataError


@dataclass(frozen=True)
class TextLayout:
    """How a file holds texts.

    Attributes:
        text: Names that the column of the texts may have; the first one that the file has is read.
        text_pair: Names of the column of the second texts, each beside the name in ``text`` at the same position: the
            first two that the file has are read. Empty for single texts.
        ignore_pairs: Whether a file may have second texts that ``text_pair`` does not name.
        of_words: Whether a text can be a list of words; if no cell holds a list, the texts are strings.
        pair_is_optional: Whether an empty second text is an empty text; otherwise its row is left out.
        separator: Separator of a CSV file.
        given_separator: The separator that the user has named for this file, which is therefore a table, whatever its
            suffix; None: the suffix says whether it is one.
        formats: File formats with columns, by suffix (``.tsv``: CSV with tabs); any other file has one text per line.
    """

    text: Sequence[str] = ("text",)
    text_pair: Sequence[str] = ()
    ignore_pairs: bool = False
    of_words: bool = False
    pair_is_optional: bool = False
    separator: str = ","
    given_separator: str | None = None
    formats: Sequence[str] = FILE_FORMATS


def read_texts(path: Path, layout: TextLayout, key: str = "--file") -> tuple[list[Any], list[str] | None, LeftOut]:
    r"""Read texts from a file.

    Args:
        path: The file. Without columns, only ``\n`` and ``\r\n`` end a line, and blank lines are skipped.
        layout: How the file holds texts.
        key: Name of the argument or configuration key with the path, for messages.

    Returns:
        The texts, the second texts (None if ``layout`` names none), and the rows that are left out.

    Raises:
        ConfigError: A separator is given for a file that has none.
        DataError: The file is unreadable, has no text, lacks a column, has second texts that ``layout`` does not name,
            or is a table or JSON whose suffix is that of a text file.
    """
    file_format, separator = _format(path, layout)
    source = f"{key} {path}" if key.startswith("-") else f"{key} = {str(path)!r}"
    if file_format is None:
        texts = _read_lines(path, source)
        if "csv" in layout.formats:
            _refuse_header(texts[0], layout, source)
        _refuse_json(texts, source)
        return texts, None, LeftOut(source, len(texts), {})
    separator_key = "--separator" if key.startswith("-") else "data.separator"
    if not path.exists():
        raise DataError(f"{source} cannot be read as text: there is no such file.")
    table = read_table(file_format, str(path), key, separator=separator, separator_key=separator_key)
    text, pair = _find_pair(table, layout) if layout.text_pair else (_find_column(table, layout.text), None)
    if not (layout.text_pair or layout.ignore_pairs) and "text_pair" in table.names and text != "text_pair":
        _refuse_pairs(table)
    of_words = layout.of_words and any(map(_holds_list, table.column(text)))
    columns = Columns(text, pair, None, None, kind=TAGS if of_words else CLASS)
    rows = select_rows(table, columns, pair_is_optional=layout.pair_is_optional)
    if not rows.numbers:
        raise DataError(f"{source} contains no text. {rows.left_out}.")
    pairs = None if pair is None else list(rows.columns["text_pair"])
    return list(rows.columns["text"]), pairs, rows.left_out


def read_conversations(
    path: Path, column: str, layout: TextLayout
) -> tuple[list[list[Turn]], list[str], LeftOut] | None:
    """Read conversations from a file, to be answered.

    Args:
        path: The file.
        column: Its column of conversations.
        layout: The formats and the separators of files; see `read_texts`.

    Returns:
        The conversations, their rows for messages, and the rows that are left out; None if the file has no such column.

    Raises:
        ConfigError: As `read_texts`.
        DataError: The file is unreadable, or a cell holds no conversation, or every cell is empty.
    """
    (file_format, separator), key = _format(path, layout), "--file"
    if file_format is None:
        return None
    table = read_table(file_format, str(path), key, separator=separator, separator_key="--separator")
    if column not in table.names:
        return None
    cells = [None if cell == "[]" else cell for cell in convert_cells(table, column, to_conversation)]
    empty = [number for number, cell in zip(table.row_numbers, cells, strict=True) if cell is None]
    left_out = LeftOut(table.source, len(cells), {NO_MESSAGES: empty} if empty else {})
    if len(empty) == len(cells):
        raise DataError(f"{table.source} contains no conversation. {left_out}.")
    found = {number: cell for number, cell in zip(table.row_numbers, cells, strict=True) if cell is not None}
    rows = [f"{table.source}: row {number}" for number in found]
    return list(map(load_conversation, found.values())), rows, left_out


def _format(path: Path, layout: TextLayout) -> tuple[str | None, str]:
    """Return the format of a table, None for one text per line, and the separator.

    Raises:
        ConfigError: A separator is given for a file that has none.
    """
    suffix, given = path.suffix.lstrip(".").lower(), layout.given_separator
    if suffix in layout.formats and suffix != "csv":
        if given is not None:
            raise ConfigError(f"--separator {given!r} has no effect on {path}, a .{suffix} file: leave it out.")
        return suffix, layout.separator
    if "csv" in layout.formats and (given is not None or suffix in ("csv", "tsv")):
        return "csv", given or ("tab" if suffix == "tsv" else layout.separator)
    return None, layout.separator


def _refuse_header(line: str, layout: TextLayout, source: str) -> None:
    """Raise `DataError` if the first line of a text file is the header of a table with the column of the texts."""
    for separator in dict.fromkeys(("\t" if layout.separator in ("tab", "\\t") else layout.separator, *"\t,;|")):
        fields = [field.strip('"') for field in line.split(separator)]
        column = next((name for name in layout.text if name in fields), None)
        if len(fields) > 1 and column is not None:
            shown = "tab" if separator == "\t" else f"'{separator}'"
            raise DataError(
                f"{source} would be read as one text per line, but its first line is the header of a table with the "
                f"column {column!r}: give --separator {shown}, or name the file .csv or .tsv. If that line is a text, "
                "move it to another place in the file."
            )


def _refuse_json(lines: Sequence[str], source: str) -> None:
    """Raise `DataError` if a text file holds JSON objects: on its first line, or as a whole."""
    if not lines[0].lstrip().startswith(("{", "[")):
        return
    for text, where in ((lines[0], "its first line is"), ("\n".join(lines), "it is")):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        is_array = isinstance(value, list)
        if not value or not all(isinstance(item, dict) for item in (value if is_array else [value])):
            continue
        remedy = "name the file .jsonl"
        if is_array or text != lines[0]:
            remedy = f"write one complete object per line and {remedy}"
        hint = " If that line is a text, move it to another place in the file." if text == lines[0] else ""
        raise DataError(
            f"{source} would be read as one text per line, but {where} a JSON "
            f"{'array of objects' if is_array else 'object'}: {remedy}.{hint}"
        )


def _holds_list(cell: object) -> bool:
    """Return whether a cell holds a list, or one printed as text, which is not split at white space but refused."""
    return isinstance(cell, (list, tuple)) or str(cell).startswith(("['", '["'))


def _find_column(table: Table, names: Sequence[str]) -> str:
    found = next((name for name in names if name in table.names), None)
    if found is None:
        raise DataError(
            f"{table.source} has no column {' or '.join(map(repr, dict.fromkeys(names)))}; it has "
            f"{', '.join(table.names)}. Rename the column with the texts."
        )
    return found


def _find_pair(table: Table, layout: TextLayout) -> tuple[str, str]:
    """Return the columns of both texts: either the first names or the second ones, so that no column has two roles."""
    pairs = list(dict.fromkeys(zip(layout.text, layout.text_pair, strict=True)))
    found = next((names for names in pairs if set(names) <= set(table.names)), None)
    if found is None:
        missing = dict.fromkeys(name for name in pairs[0] if name not in table.names)
        raise DataError(
            f"{table.source} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.names)}. Pairs of "
            f"texts are read from the columns {', or '.join(f'{text!r} and {pair!r}' for text, pair in pairs)}: "
            "rename the columns with the texts."
        )
    return found


def _refuse_pairs(table: Table) -> None:
    filled = [row for row, value in zip(table.row_numbers, table.column("text_pair"), strict=True)
              if not is_missing(value)]  # fmt: skip
    if filled:
        raise DataError(
            f"{table.source} has second texts (text_pair, row {filled[0]}), but single texts are expected: remove "
            "text_pair from the file."
        )


def _read_lines(path: Path, source: str) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read as text: {error.strerror}.") from error
    texts = [line for _, line in split_lines(decode(content, source))]
    if not texts:
        raise DataError(f"{source} contains no text.")
    return texts
