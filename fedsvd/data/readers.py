"""Reading of user files: one reader per format for all commands, so that equal data give equal rows everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Features
from pyarrow import parquet

from fedsvd.data.table import Table
from fedsvd.data.text_tables import parse_csv, parse_json_lines
from fedsvd.errors import DataError, first_line

FILE_FORMATS = ("csv", "jsonl", "parquet", "arrow")
# What Arrow raises for a value that has no counterpart in Python, such as a date after the year 9999.
_UNREADABLE = (ArithmeticError, LookupError, ValueError, pyarrow.ArrowException)


def read_table(
    file_format: str, path: str, key: str, *, separator: str = ",", separator_key: str = "data.separator"
) -> Table:
    """Read a file.

    Args:
        file_format: One of `FILE_FORMATS`; ``arrow`` is a directory written by ``Dataset.save_to_disk`` or an
            ``.arrow`` file.
        path: The file.
        key: The configuration key of the path, for messages.
        separator: Separator of the fields of a CSV file: one character, or ``tab``.
        separator_key: The configuration key of the separator, for messages.

    Raises:
        DataError: The file is missing, unreadable, or not what its format claims: not UTF-8, another separator, rows
            with more or fewer fields than the header, an open quotation mark, no JSON object on a line, several columns
            of one name, or half of a surrogate pair.
    """
    source = f"{key} = {path!r}"
    if not Path(path).exists():
        raise DataError(f"{source} does not exist; set it to the path of a {file_format} file.")
    try:
        if file_format == "csv":
            return parse_csv(Path(path).read_bytes(), source, separator, separator_key)
        if file_format == "jsonl":
            return parse_json_lines(Path(path).read_bytes(), source)
        # datasets.load_dataset is avoided because it would store a copy of the client's text in the user's cache.
        return _read_parquet(path, source) if file_format == "parquet" else _read_arrow(path, source)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source} cannot be read as {file_format}: {first_line(error)}.") from error


def dataset_table(dataset: Dataset, source: str) -> Table:
    """Return the table of a dataset."""
    return arrow_table(dataset.with_format("arrow")[:], source, dataset.features)


def arrow_table(table: pyarrow.Table, source: str, features: Features | None = None) -> Table:
    """Return the table of a pyarrow table; ``features`` names the classes of its columns of ClassLabels or their lists.

    Its function ``column`` raises `DataError` for text that is not UTF-8, and for a value that Python cannot hold.

    Raises:
        DataError: Several columns have one name.
    """
    names = list(table.column_names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{source} has several columns of the name {repeated[0]!r}: rename or remove all but one.")

    def column(name: str) -> Sequence[object]:
        values = table.column(name)
        try:
            return _shortest_numbers(values.to_pylist(), values.type)
        except _UNREADABLE as error:
            row = next((number for number, value in enumerate(values, start=1) if not _is_readable(value)), None)
            where = f"{source}: column {name!r}" if row is None else f"{source}: row {row}: column {name!r}"
            if isinstance(error, UnicodeDecodeError):
                raise DataError(f"{where} holds text that is not UTF-8: write it as UTF-8.") from error
            raise DataError(
                f"{where} holds a value of type {values.type} that cannot be read ({first_line(error)}): correct it, "
                "or write the column as text."
            ) from error

    labels = {name: feature.names for name, feature in (features or {}).items() if isinstance(feature, ClassLabel)}
    items = {name: getattr(feature, "feature", None) for name, feature in (features or {}).items()}
    in_lists = {name: item.names for name, item in items.items() if isinstance(item, ClassLabel)}
    return Table(source, names, range(1, table.num_rows + 1), column, labels, in_lists)


def _shortest_numbers(values: list[Any], kind: pyarrow.DataType) -> list[Any]:
    """Replace numbers of less precision than Python's, also in lists, by those with the same shortest text.

    In float32, 0.1 is the number 0.10000000149011612 of Python.
    """
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    narrow = {pyarrow.float16(): np.float16, pyarrow.float32(): np.float32}.get(kind)
    if narrow is None:
        return values

    def shortest(value: Any) -> Any:
        if isinstance(value, list):
            return [shortest(item) for item in value]
        return None if value is None else float(str(narrow(value)))

    return [shortest(value) for value in values]


def _is_readable(value: pyarrow.Scalar) -> bool:
    try:
        value.as_py()
    except _UNREADABLE:
        return False
    return True


def _read_parquet(path: str, source: str) -> Table:
    # Without partitioning: it would add columns for directories whose names contain "=".
    options: dict[str, Any] = {"partitioning": None} if Path(path).is_file() else {}
    table = parquet.read_table(path, **options)
    has_features = b"huggingface" in (table.schema.metadata or {})
    return arrow_table(table, source, Features.from_arrow_schema(table.schema) if has_features else None)


def _read_arrow(path: str, source: str) -> Table:
    loaded = Dataset.from_file(path) if Path(path).is_file() else datasets.load_from_disk(path)
    if not isinstance(loaded, Dataset):
        raise DataError(f"{source} holds the splits {', '.join(loaded)}: set it to the directory of one of them.")
    return dataset_table(loaded, source)
