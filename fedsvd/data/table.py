"""The table that every reader of user data returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """The columns of a file, with the values that its format has: CSV has strings only.

    Attributes:
        source: What was read, for messages.
        names: Names of the columns.
        row_numbers: Number of each row: the line on which it starts (CSV, JSON lines), or its position, counted from 1.
        column: Function that returns the values of a column.
        class_names: Names of the classes of each column that stores classes as numbers (ClassLabel).
        list_class_names: The same of columns that store lists of classes.
    """

    source: str
    names: Sequence[str]
    row_numbers: Sequence[int]
    column: Callable[[str], Sequence[object]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    list_class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def named_classes(self, column: str) -> Sequence[str] | None:
        """Return the names of the classes of a column or of the lists in it; None if it does not store numbers."""
        return self.class_names.get(column) or self.list_class_names.get(column)
