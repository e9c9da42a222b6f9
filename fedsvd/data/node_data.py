"""A node's local data: one file, checked against the run's configuration.

Error messages contain details of the data, such as labels and row numbers. They are written to the node's own log only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from fedsvd.data.user_data import Columns, read_file
from fedsvd.errors import DataError, NodeDataError

logger = logging.getLogger(__name__)

NODE_FILE_FORMATS = ("csv", "jsonl", "parquet")
_MAX_SHOWN = 5


def load_node_file(path: str, columns: Columns, labels: Sequence[str], key: str = "data-path") -> Dataset:
    """Load a node's local file and check that it fits the run.

    Rows without a text or a label are skipped. Their number is written to the node's log.

    Args:
        path: The file; its suffix determines its format, one of `NODE_FILE_FORMATS`.
        columns: Names of its columns.
        labels: The run's classes, in order of their class indices.
        key: The configuration key of the path, for error messages.

    Returns:
        A dataset with columns ``text``, ``label`` (a ClassLabel) and, for text pairs, ``text_pair``.

    Raises:
        NodeDataError: The file is missing or unreadable, lacks a column, contains labels that the run does not know,
            or has no usable row.
    """
    file_format = Path(path).suffix.lstrip(".").lower()
    if file_format not in NODE_FILE_FORMATS:
        raise NodeDataError(f"{key} = {path!r} has an unsupported format; use {', '.join(NODE_FILE_FORMATS)}.")
    try:
        table = read_file(file_format, path, key)
    except DataError as error:
        raise NodeDataError(str(error)) from error
    names = {"text": columns.text, "label": str(columns.label)}
    if columns.text_pair is not None:
        names["text_pair"] = columns.text_pair
    missing = [name for name in names.values() if name not in table.column_names]
    if missing:
        raise NodeDataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.column_names)}. Set its "
            "column names in the node's configuration: text-column, text-pair-column, label-column."
        )
    rows = list(zip(*(table[name] for name in names.values()), strict=True))
    # Row numbers as an editor shows them: the first line of a CSV file is its header.
    first = 2 if file_format == "csv" else 1
    usable = {first + i: row for i, row in enumerate(rows) if _is_text(row[0]) and _label_text(row[1]) is not None}
    if len(usable) < len(rows):
        skipped = [number for number in range(first, first + len(rows)) if number not in usable]
        logger.warning(
            "%s: %d of %d rows have no text or no label and are skipped (rows %s)",
            path,
            len(skipped),
            len(rows),
            _abbreviate(skipped),
        )
    row_labels = {number: str(_label_text(row[1])) for number, row in usable.items()}
    _check_labels(path, row_labels, labels)
    class_indices = {label: index for index, label in enumerate(labels)}
    data = {
        "text": [row[0] for row in usable.values()],
        "label": [class_indices[label] for label in row_labels.values()],
    }
    if columns.text_pair is not None:
        data["text_pair"] = [str(row[2]) for row in usable.values()]
    return Dataset.from_dict(data, features=_features(labels, pairs=columns.text_pair is not None))


def empty_dataset(labels: Sequence[str], *, pairs: bool) -> Dataset:
    """Return a dataset without rows that has the run's columns and classes."""
    features = _features(labels, pairs=pairs)
    return Dataset.from_dict({name: [] for name in features}, features=features)


def _features(labels: Sequence[str], *, pairs: bool) -> Features:
    texts = {"text_pair": Value("string")} if pairs else {}
    return Features({"text": Value("string"), "label": ClassLabel(names=list(labels)), **texts})


def count_labels(dataset: Dataset) -> dict[str, int]:
    """Count a dataset's rows by class."""
    names = dataset.features["label"].names
    counts = Counter(dataset["label"])
    return {name: counts[index] for index, name in enumerate(names)}


def _check_labels(path: str, row_labels: dict[int, str], labels: Sequence[str]) -> None:
    """Check the labels, given by row number, against the run's classes; raise `NodeDataError` if one is unknown."""
    if not row_labels:
        raise NodeDataError(f"{path} has no row with both a text and a label; check its columns.")
    unknown = {number: label for number, label in row_labels.items() if label not in labels}
    if unknown:
        raise NodeDataError(
            f"{path} has labels that the run does not know: {_abbreviate(sorted(set(unknown.values())))} in "
            f"{len(unknown)} of {len(row_labels)} rows (rows {_abbreviate(list(unknown))}). The run's classes "
            f"(data.labels) are {', '.join(labels)}: use these labels, or set label-column to another column."
        )
    absent = sorted(set(labels) - set(row_labels.values()))
    if absent:
        logger.warning("%s has no example of %s; only other nodes can provide them", path, _abbreviate(absent))


def _label_text(value: object) -> str | None:
    """Return a label as text, or None for an empty cell."""
    # NaN is the only value that differs from itself.
    if value is None or value != value:
        return None
    # pandas reads an integer column with empty cells as floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _abbreviate(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_MAX_SHOWN])) + (", …" if len(values) > _MAX_SHOWN else "")
