"""Strict parsing of CSV, JSON lines and plain text; Python's csv and json modules do the parsing.

Every error names the row (the line on which it starts, as an editor counts), the cause and the remedy.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fedsvd.data.csv_checks import Record, check_records
from fedsvd.data.table import Table
from fedsvd.data.values import WrittenFloat
from fedsvd.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")
# A limit of the csv module, which is smaller than a long document.
_MAX_FIELD = 2**31 - 1
# A carriage return that is part of a text: neither before a line feed nor at the end of the file.
_INNER_RETURN = re.compile(r"\r(?!\n|\Z)")
# What stands for it while the csv module, for which it would end a line, parses: no character of a decoded file.
_STAND_IN = "\udc0d"


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
    # A line without a field, or with whitespace only, is blank unless the file has one column.
    rows = [row for row in rows if len(header) == 1 or len(row[2]) > 1 or "".join(row[2]).strip()]
    check_records(header, rows, delimiter, source, separator_key)
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


def _records(text: str, delimiter: str, source: str) -> Iterator[Record]:
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
    if any(map(_SURROGATE.search, _texts(row))):
        raise DataError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character: write the character "
            "itself or both halves, or remove it."
        )
    return row


def _texts(value: object) -> Iterator[str]:
    """Yield each text in a JSON value, which may be nested, with the keys of objects."""
    # Without recursion, whose limit the value may have reached.
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            values += [*item, *item.values()]
        elif isinstance(item, list):
            values += item


def _not_an_object(where: str, cause: str) -> str:
    return f"{where} {cause}: write one complete JSON object per line, without an array around them."


def _count_lines(text: str) -> int:
    return text.count("\n") + 1
