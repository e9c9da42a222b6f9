"""Columns of a table converted to texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedsvd.data.table import Table
from fedsvd.data.values import abbreviate, is_missing
from fedsvd.errors import DataError

_HIDDEN = -1


def convert_cells(table: Table, name: str, convert: Callable[[object], Any]) -> list[Any]:
    """Return a column's values as ``convert`` returns them, such as texts; None for empty cells and hidden labels.

    Raises:
        DataError: ``convert`` refuses a cell, or a cell holds the number of no class.
    """
    class_names = table.class_names.get(name)
    values = table.column(name)
    if class_names is not None:
        hidden = hidden_labels(table, name)
        return [None if v is None or i in hidden else class_names[int(str(v))] for i, v in enumerate(values)]
    texts: list[Any] = []
    for number, value in zip(table.row_numbers, values, strict=True):
        try:
            texts.append(None if is_missing(value) else convert(value))
        except DataError as error:
            raise DataError(f"{table.source}: row {number}: column {name!r} {error}.") from error
    return texts


def hidden_labels(table: Table, name: str) -> set[int]:
    """Return the positions of labels that are hidden: -1 in a column of numbered classes.

    Raises:
        DataError: A number is that of no class.
    """
    names = table.class_names.get(name)
    if names is None:
        return set()
    values: Sequence[Any] = table.column(name)
    for number, value in zip(table.row_numbers, values, strict=True):
        if value is not None and not _HIDDEN <= value < len(names):
            raise DataError(
                f"{table.source}: row {number}: column {name!r} holds {value}, but its {len(names)} classes are "
                f"numbered from 0: correct the value, or the file's list of classes ({abbreviate(names)})."
            )
    return {index for index, value in enumerate(values) if value == _HIDDEN}


def without_names(table: Table, name: str) -> Table:
    """Return a table in which a column of numbered classes is one of numbers, with empty cells as hidden labels.

    Raises:
        DataError: A number is that of no class.
    """
    hidden = hidden_labels(table, name)
    values = [None if index in hidden else value for index, value in enumerate(table.column(name))]
    return replace(table, class_names={}, column=lambda other: values if other == name else table.column(other))
