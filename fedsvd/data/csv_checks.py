"""Checks of the records of a CSV file: separator, column names, widths, and quotation marks that enclose whole rows.

Every error names the row, the cause and the remedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedsvd.data.values import abbreviate
from fedsvd.errors import DataError

# First line, last line and fields of a record.
Record = tuple[int, int, list[str]]
_SEPARATORS = (";", "\t", "|", ",")


def check_records(
    header: Sequence[str], rows: Sequence[Record], delimiter: str, source: str, separator_key: str
) -> None:
    """Check the records of a CSV file.

    Args:
        header: Names of the columns.
        rows: The other records that are not blank.
        delimiter: The separator, one character.
        source: The file, for messages.
        separator_key: The configuration key of the separator, for messages.

    Raises:
        DataError: The file has other line ends or another separator, several columns of one name, rows with more or
            fewer fields than the header, or a quotation mark that encloses whole rows.
    """
    _check_line_ends(header, source)
    _check_separator(header, delimiter, source, separator_key)
    _check_names(header, source)
    _check_widths(rows, header, delimiter, source)
    _check_swallowed_lines(rows, header, delimiter, source)


def _check_line_ends(header: Sequence[str], source: str) -> None:
    if any("\r" in name for name in header):
        raise DataError(
            f"{source}: row 1: the header holds a carriage return without a line feed, which ends no line: save the "
            r"file with lines that end with \n or \r\n."
        )


def _check_separator(header: Sequence[str], delimiter: str, source: str, key: str) -> None:
    found = _other_separator(header, delimiter)
    if found is not None:
        mark, setting = _quoted(found), f"{key}={'tab' if found == chr(9) else repr(found)}"
        expected = _quoted(delimiter)
        raise DataError(
            f"{source}: row 1: the header holds {mark} and no {expected}: set {setting}, or save the file with "
            f"{expected} between its columns."
        )


def _other_separator(names: Sequence[str], delimiter: str) -> str | None:
    """Return the separator that a header of one column probably has; None if the given one fits."""
    if len(names) > 1:
        return None
    return next((mark for mark in _SEPARATORS if mark != delimiter and mark in "".join(names)), None)


def _quoted(separator: str) -> str:
    return "a tab" if separator == "\t" else f"'{separator}'"


def _check_names(header: Sequence[str], source: str) -> None:
    repeated = sorted({name for name in header if name and list(header).count(name) > 1})
    if repeated:
        raise DataError(
            f"{source}: row 1: the header has several columns of the name {', '.join(map(repr, repeated))}: rename or "
            "remove all but one."
        )


def _check_widths(rows: Sequence[Record], header: Sequence[str], delimiter: str, source: str) -> None:
    wrong = [(first, record) for first, _, record in rows if len(record) != len(header)]
    if wrong:
        number, record = wrong[0]
        fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
        others = "" if len(wrong) == 1 else f"; {len(wrong)} of {len(rows)} rows do not have as many as the header"
        raise DataError(
            f"{source}: row {number} has {fields} and the header {len(header)} ({abbreviate(list(header))}){others}: "
            f"put each text that contains {_quoted(delimiter)} or a line break between quotation marks."
        )


def _check_swallowed_lines(rows: Sequence[Record], header: Sequence[str], delimiter: str, source: str) -> None:
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
            *fields, begun = [line.removesuffix("\r").split(delimiter) for line in cell.split("\n")]
            candidates = [[*record[:index], *fields[0]], *fields[1:]] if fields else []
            # In the last line, a row has begun whose text in this column ends at the second quotation mark.
            has_begun = index == 0 or (len(begun) > index and any(map(set.__contains__, known, begun[:index])))
            if (
                candidates
                and has_begun
                and all(
                    len(candidate) == len(header)
                    and any(value in known[i] for i, value in enumerate(candidate) if i != index)
                    for candidate in candidates
                )
            ):
                raise DataError(
                    f"{source}: row {first}: a quotation mark opens in column {header[index]!r} and the next one is in "
                    f"row {last}, so that the rows between are part of one text: close it, or double it if it belongs "
                    "to the text. If the lines do belong together, save the file as JSON lines or Parquet."
                )
