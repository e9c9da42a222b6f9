"""What the label column holds for each task: one class, a set of classes, a number, or a tag for each word.

A label is the name of a class, a tuple of names, or a number. In a loaded dataset, the column ``label`` has positions
in the list of classes instead of names: a ``ClassLabel``, a list of them, or a ``float64``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from fedsvd.config import DataConfig
from fedsvd.config.task import VALUE
from fedsvd.data.cells import convert_cells, without_names
from fedsvd.data.table import Table
from fedsvd.data.values import is_missing, is_printed_list, match_classes, to_class_name, to_number, to_text
from fedsvd.data.words import read_tags
from fedsvd.errors import DataError

# Names of items that say of each class whether it applies.
_INDICATORS = {"0", "1", "false", "true"}


@dataclass(frozen=True)
class TargetKind:
    """What a label is.

    Attributes:
        read: Function from a cell that is not empty to its label, in which classes may be repeated; raises `DataError`
            with the cause and the remedy.
        has_classes: Whether a label consists of classes; otherwise it is a number.
        is_list: Whether a label is a tuple of classes.
        of_words: Whether a text is a list of words, each with a class of its own.
    """

    read: Callable[[object], Any] = to_class_name
    has_classes: bool = True
    is_list: bool = False
    of_words: bool = False

    def classes_of(self, label: Any) -> tuple[str, ...]:
        """Return the classes of a label."""
        if not self.has_classes:
            return ()
        return label if self.is_list else (label,)


CLASS = TargetKind()
TAGS = TargetKind(read_tags, is_list=True, of_words=True)


def target_kind(task: str, config: DataConfig) -> TargetKind:
    """Return what a label is for a task, one of `fedsvd.config.task.TASKS`."""
    return _KINDS[task](config)


def read_targets(table: Table, column: str, kind: TargetKind) -> list[Any]:
    """Return the label of each row, for several classes without repetitions; None for empty cells and hidden labels.

    Raises:
        DataError: A cell holds no label of this kind, or the number of no class.
    """
    if kind == CLASS:
        return convert_cells(table, column, kind.read)
    is_set = kind.is_list and not kind.of_words
    if is_set and column in table.class_names:
        return [None if name is None else (name,) for name in convert_cells(table, column, kind.read)]
    names, unnamed = table.list_class_names.get(column), without_names(table, column)
    if names is not None and kind.is_list:
        labels = convert_cells(unnamed, column, lambda cell: kind.read(_names_of(cell, names)))
    else:
        labels = convert_cells(unnamed, column, kind.read)
        if is_set:
            _refuse_indicators(table, column, labels)
    return [label if label is None else tuple(dict.fromkeys(label)) for label in labels] if is_set else labels


def class_names(labels: Sequence[Any], kind: TargetKind) -> list[str]:
    """Return the classes that occur, the shortest names first; a number has one class, which stands for its value.

    Raises:
        DataError: There are too few classes.
    """
    if not kind.has_classes:
        return [VALUE]
    names = {name for label in labels for name in kind.classes_of(label)}
    return check_classes(sorted(names, key=lambda name: (len(name), name)))


def check_classes(names: Sequence[str]) -> list[str]:
    """Return the classes that occur in the training texts; raises `DataError` if there are fewer than two."""
    if len(names) < 2:
        found = f"the labels {', '.join(names)}" if names else "no label"
        raise DataError(f"the training texts have {found}; expected at least two. Check data.label_column.")
    return list(names)


def match_targets(
    labels: Sequence[Any], names: Sequence[str], kind: TargetKind
) -> tuple[list[Any], list[str], list[int]]:
    """Match labels with classes, whose names may be other forms of the same numbers.

    Returns:
        The labels with the names of the classes, the sorted classes that are not among them, and the positions of the
        rows that have these.
    """
    if not kind.has_classes:
        return list(labels), [], []
    found = list(dict.fromkeys(name for label in labels for name in kind.classes_of(label)))
    known = dict(zip(found, match_classes(found, names), strict=True))
    unknown = sorted(name for name, match in known.items() if match is None)
    rows = [row for row, label in enumerate(labels) if unknown and set(unknown) & set(kind.classes_of(label))]
    if kind.is_list:
        return [tuple(known[name] for name in label) for label in labels], unknown, rows
    return [known[label] for label in labels], unknown, rows


def stored_targets(labels: Sequence[Any], names: Sequence[str], kind: TargetKind) -> tuple[list[Any], Any]:
    """Return the values of the column ``label`` and its feature."""
    if not kind.has_classes:
        return list(labels), Value("float64")
    positions = {name: position for position, name in enumerate(names)}
    if kind.is_list:
        return [[positions[name] for name in label] for label in labels], List(ClassLabel(names=list(names)))
    return [positions[label] for label in labels], ClassLabel(names=list(names))


def target_feature(names: Sequence[str], kind: TargetKind) -> Any:
    """Return the feature of the column ``label``."""
    return stored_targets([], names, kind)[1]


def dataset_classes(dataset: Dataset) -> list[str]:
    """Return the classes of a loaded dataset; `VALUE` if its labels are numbers."""
    feature = _class_feature(dataset)
    return [VALUE] if feature is None else list(feature.names)


def count_labels(dataset: Dataset) -> dict[str, int]:
    """Count a dataset's rows by class, in each of its classes if a label has several; numbers are counted together."""
    feature = _class_feature(dataset)
    if feature is None:
        return {"texts": len(dataset)}
    labels, is_list = dataset["label"][:], not isinstance(dataset.features["label"], ClassLabel)
    counts = Counter(number for row in labels for number in row) if is_list else Counter(labels)
    return {name: counts[index] for index, name in enumerate(feature.names)}


def with_positions(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return a dataset with the positions of its classes in another list, which must have all that occur."""
    feature = _class_feature(dataset)
    if feature is None:
        return dataset
    positions = {number: list(names).index(name) for number, name in enumerate(feature.names) if name in names}
    is_list = not isinstance(dataset.features["label"], ClassLabel)
    labels = [[positions[i] for i in row] if is_list else positions[row] for row in dataset["label"][:]]
    new: Any = ClassLabel(names=list(names))
    return dataset.remove_columns("label").add_column("label", labels, feature=List(new) if is_list else new)


def used_classes(dataset: Dataset) -> list[str]:
    """Return the classes that occur in a loaded dataset, in their order; none if its labels are numbers."""
    return [name for name, count in count_labels(dataset).items() if count] if _class_feature(dataset) else []


def scaled(values: Sequence[float], label_range: tuple[float, float] | None) -> list[float]:
    """Map numbers from ``data.label_range`` to 0 … 1, on which a model is trained."""
    low, high = label_range or (0.0, 1.0)
    return [(value - low) / (high - low) for value in values]


def _class_feature(dataset: Dataset) -> ClassLabel | None:
    feature = dataset.features["label"]
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, ClassLabel) else None


def _names_of(cell: object, names: Sequence[str]) -> object:
    """Replace the numbers in a list by the names of the classes; other values are unchanged."""
    if not isinstance(cell, list):
        return cell
    outside = next((number for number in cell if not isinstance(number, int) or not 0 <= number < len(names)), None)
    if outside is not None:
        raise DataError(f"holds {outside}, but its {len(names)} classes are numbered from 0: correct the value")
    return [names[number] for number in cell]


def _refuse_indicators(table: Table, column: str, labels: Sequence[tuple[str, ...] | None]) -> None:
    """Raise `DataError` for lists of zeros and ones, one per class, which would be read as the classes 0 and 1.

    Lists of both classes in every row are refused as well: numbers cannot say whether two classes are named or
    indicated. Texts in this order are names.
    """
    rows = [label for label in labels if label is not None]
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths <= {0, 1} or not all(name.lower() in _INDICATORS for row in rows for name in row):
        return
    cell: Any = next(cell for cell in table.column(column) if not is_missing(cell))
    items = cell if isinstance(cell, (list, tuple)) else [cell]
    if set(rows) != {("0", "1")} or not all(isinstance(item, str) for item in items):
        raise DataError(
            f"{table.source}: column {column!r} holds lists of {lengths.pop()} zeros and ones, such as {cell}: "
            "expected the names of the classes that apply to a text, as texts if they are numbers."
        )


def _read_classes(separator: str, cell: object) -> tuple[str, ...]:
    """Read a list of class names, or names in one text."""
    if isinstance(cell, (list, tuple)):
        if any(is_missing(item) for item in cell):
            raise DataError("holds a list with an empty name: remove it, or write []")
        return tuple(to_class_name(item) for item in cell)
    if is_printed_list(to_text(cell)):
        raise DataError(f"holds the list {to_text(cell)} as text: write its names with {separator!r} between them")
    names = (name.strip() for name in to_text(cell).split(separator))
    return tuple(to_class_name(name) for name in names if name)


def _read_number(label_range: tuple[float, float] | None, cell: object) -> float:
    """Read a finite number in the configured range."""
    number = None if isinstance(cell, bool) else to_number(to_text(cell))
    if number is None:
        raise DataError(f"holds {to_text(cell)!r}: expected a number, as model.task = regression predicts")
    low, high = label_range or (-math.inf, math.inf)
    if not low <= number <= high:
        # An evaluation cannot change the range, nor can the owner of a node.
        remedy = "correct it, or train with a range that contains it"
        raise DataError(f"holds {number:g}, outside of data.label_range = [{low:g}, {high:g}]: {remedy}")
    return number


_KINDS: Mapping[str, Callable[[DataConfig], TargetKind]] = {
    "sequence_classification": lambda config: CLASS,
    "causal_lm": lambda config: CLASS,
    "multi_label_classification": lambda config: TargetKind(
        partial(_read_classes, config.label_separator), is_list=True
    ),
    "token_classification": lambda config: TAGS,
    "regression": lambda config: TargetKind(partial(_read_number, config.label_range), has_classes=False),
}
