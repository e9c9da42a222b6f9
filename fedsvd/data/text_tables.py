"""Strict parsing of CSV, JSON lines and plain text; Python's csv and json modules do the parsing.

Every error names the row (the line on which it starts, as an editor counts), the cause and the remedy.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fedsvd.data.table import Table
from fedsvd.data.values import WrittenFloat, abbreviate
from fedsvd.errors import DataError

_SEPARATORS = (";", "\t", "|", ",")
_SURROGATE = re.compile("[\ud800-\udfff]")
# A limit of the csv module, which is smaller than a long document.
_MAX_FIELD = 2**31 - 1
# A carriage return that is part of a text: neither before a line feed nor at the end of the file.
_INNER_RETURN = re.compile(r"\r(?!\n|\Z)")
# What stands for it while the csv module, for which it would end a line, parses: no character of a decoded file.
_STAND_IN = "\udc0d"
# First line, last line and fields of a record.
_Record = tuple[int, int, list[str]]


def decode(content: bytes, source: str) -> str:
    """Decode UTF-8, with or without a byte-order mark.

    Raises:
        DataError: The bytes are in another encoding.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The positions of the error do not count the byte-order mark.
        body = content.removeprefix(b"\xef\xbb\xbf")
        row = _count_lines(body[: error.start].decode("utf-8"))
        raise DataError(
            f"{source}: row {row}: byte 0x{body[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from error
    if "\0" in text:
        row = _count_lines(text[: text.index("\0")])
        raise DataError(f"{source}: row {row} has a NUL byte, as UTF-16 files do: save the file as UTF-8.")
    return text


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield each line that is not blank with its number.

    Only ``\n`` and ``\r\n`` end a line: form feeds, U+0085 and U+2028 are part of the text.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def parse_csv(content: bytes, source: str, separator: str, separator_key: str) -> Table:
    """Parse CSV with a header; all values are strings.

    Args:
        content: The bytes of the file.
        source: What they are, for messages.
        separator: One character, or ``tab``.
        separator_key: The configuration key of the separator, for messages.

    Raises:
        DataError: See `fedsvd.data.readers.read_table`.
    """
    delimiter = "\t" if separator in ("tab", "\\t") else separator
    records = list(_records(decode(content, source), delimiter, source))
    if not records:
        raise DataError(f"{source} is empty: expected a header line with the names of the columns, then one row each.")
    (_, _, header), *rows = records
    _check_line_ends(header, source)
    # A line without a field, or with whitespace only, is blank unless the file has one column.
    rows = [row for row in rows if len(header) == 1 or len(row[2]) > 1 or "".join(row[2]).strip()]
    _check_separator(header, delimiter, source, separator_key)
    _check_names(header, source)
    _check_widths(rows, header, delimiter, source)
    _check_swallowed_lines(rows, header, delimiter, source)
    columns = {name: [row[2][index] for row in rows] for index, name in enumerate(header) if name}
    return Table(source, list(columns), [row[0] for row in rows], columns.__getitem__)


def parse_json_lines(content: bytes, source: str) -> Table:
    """Parse one JSON object per line; a key that an object does not have is null.

    Raises:
        DataError: See `fedsvd.data.readers.read_table`.
    """
    rows = [(number, _parse_object(line, number, source)) for number, line in split_lines(decode(content, source))]
    if not rows:
        raise DataError(f"{source} is empty: expected one JSON object per line.")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return Table(source, names, [number for number, _ in rows], lambda name: [row.get(name) for _, row in rows])


def other_separator(names: Sequence[str], delimiter: str) -> str | None:
    """Return the separator that a header of one column probably has; None if the given one fits."""
    if len(names) > 1:
        return None
    return next((mark for mark in _SEPARATORS if mark != delimiter and mark in "".join(names)), None)


def _records(text: str, delimiter: str, source: str) -> Iterator[_Record]:
    """Yield the first line, the last line and the fields of each record that is not an empty line.

    As in `split_lines`, a carriage return that no line feed follows is part of a text.
    """
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        stream = io.StringIO(_INNER_RETURN.sub(_STAND_IN, text), newline="")
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                unclosed = "unexpected end of data" in str(error)
                cause = "a quotation mark opens a text and none closes it" if unclosed else str(error)
                raise DataError(
                    f"{source}: row {first}: {cause}: put a text that contains quotation marks between quotation marks "
                    'and double those inside it ("").'
                ) from error
            if record:
                yield first, reader.line_num, [field.replace(_STAND_IN, "\r") for field in record]
    finally:
        csv.field_size_limit(limit)


def _check_line_ends(header: Sequence[str], source: str) -> None:
    if any("\r" in name for name in header):
        raise DataError(
            f"{source}: row 1: the header holds a carriage return without a line feed, which ends no line: save the "
            r"file with lines that end with \n or \r\n."
        )


def _check_separator(header: Sequence[str], delimiter: str, source: str, key: str) -> None:
    found = other_separator(header, delimiter)
    if found is not None:
        mark, setting = _quoted(found), f"{key}={'tab' if found == chr(9) else repr(found)}"
        expected = _quoted(delimiter)
        raise DataError(
            f"{source}: row 1: the header holds {mark} and no {expected}: set {setting}, or save the file with "
            f"{expected} between its columns."
        )


def _quoted(separator: str) -> str:
    return "a tab" if separator == "\t" else f"'{separator}'"


def _check_names(header: Sequence[str], source: str) -> None:
    repeated = sorted({name for name in header if name and list(header).count(name) > 1})
    if repeated:
        raise DataError(
            f"{source}: row 1: the header has several columns of the name {', '.join(map(repr, repeated))}: rename or "
            "remove all but one."
        )


def _check_widths(rows: Sequence[_Record], header: Sequence[str], delimiter: str, source: str) -> None:
    wrong = [(first, record) for first, _, record in rows if len(record) != len(header)]
    if wrong:
        number, record = wrong[0]
        fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
        others = "" if len(wrong) == 1 else f"; {len(wrong)} of {len(rows)} rows do not have as many as the header"
        raise DataError(
            f"{source}: row {number} has {fields} and the header {len(header)} ({abbreviate(list(header))}){others}: "
            f"put each text that contains {_quoted(delimiter)} or a line break between quotation marks."
        )


def _check_swallowed_lines(rows: Sequence[_Record], header: Sequence[str], delimiter: str, source: str) -> None:
    """Refuse a quoted text that has swallowed rows: its lines are rows themselves, with values that rows repeat."""
    if len(header) < 2:
        return
    counts: list[Counter[str]] = [Counter() for _ in header]
    for first, last, record in rows:
        if first == last:
            for column, value in zip(counts, record, strict=True):
                column[value] += 1
    # Values that repeat, as classes do.
    known = [{value for value, count in column.items() if count > 1 and value.strip()} for column in counts]
    for first, last, record in rows:
        for index, cell in enumerate(record if last > first else []):
            lines = [line.removesuffix("\r") for line in cell.split("\n")][:-1]
            fields = [line.split(delimiter) for line in lines]
            candidates = [[*record[:index], *fields[0]], *fields[1:]] if fields else []
            if candidates and all(
                len(candidate) == len(header)
                and any(value in known[i] for i, value in enumerate(candidate) if i != index)
                for candidate in candidates
            ):
                raise DataError(
                    f"{source}: row {first}: a quotation mark opens in column {header[index]!r} and the next one is in "
                    f"row {last}, so that the rows between are part of one text: close it, or double it if it belongs "
                    "to the text. If the lines do belong together, save the file as JSON lines or Parquet."
                )


def _parse_object(line: str, number: int, source: str) -> dict[str, Any]:
    where = f"{source}: row {number}"

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            repeated = sorted({name for name, _ in pairs if [key for key, _ in pairs].count(name) > 1})
            raise DataError(f"{where} has the key {repeated[0]!r} several times: rename or remove all but one.")
        return row

    def constant(name: str) -> NoReturn:
        raise DataError(f"{where} holds {name}, which is not JSON: write null for a missing value.")

    try:
        # Not strict: control characters such as tabs and form feeds are text even if they are not escaped.
        row = json.loads(
            line, strict=False, object_pairs_hook=unique, parse_float=WrittenFloat, parse_constant=constant
        )
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply: expected one flat JSON object per line.") from error
    except ValueError as error:
        array = line.lstrip().startswith("[")
        cause = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(_not_an_object(where, "starts an array" if array else f"is not JSON ({cause})")) from error
    if not isinstance(row, dict):
        raise DataError(_not_an_object(where, "is an array" if isinstance(row, list) else f"is {json.dumps(row)[:40]}"))
    if any(_SURROGATE.search(text) for item in row.items() for text in item if isinstance(text, str)):
        raise DataError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character: write the character "
            "itself or both halves, or remove it."
        )
    return row


def _not_an_object(where: str, cause: str) -> str:
    return f"{where} {cause}: write one complete JSON object per line, without an array around them."


def _count_lines(text: str) -> int:
    return text.count("\n") + 1
