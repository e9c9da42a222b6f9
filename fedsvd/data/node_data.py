"""A node's local data: one file, checked against the run's configuration.

Error messages contain details of the data, such as labels and row numbers. They are written to the node's own log only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value

from fedsvd.config import DataConfig
from fedsvd.data.overlap import check_overlap
from fedsvd.data.readers import read_table
from fedsvd.data.rows import ANY_CLASS, Columns, LeftOut, Rows, build_dataset, missing_columns, select_rows
from fedsvd.data.table import Table
from fedsvd.data.targets import count_labels, dataset_classes, match_targets, target_feature
from fedsvd.data.values import abbreviate
from fedsvd.errors import DataError, NodeDataError

logger = logging.getLogger(__name__)

NODE_FILE_FORMATS = ("csv", "jsonl", "parquet")


def load_node_file(
    path: str, columns: Columns, labels: Sequence[str], key: str = "data-path", separator: str = ","
) -> Dataset:
    """Load a node's local file and check that it fits the run.

    Rows without a text, a label or another value that the run needs are left out. Their numbers are written to the
    node's log.

    Args:
        path: The file; its suffix determines its format, one of `NODE_FILE_FORMATS`.
        columns: Names of its columns.
        labels: The run's classes, in order of their class indices.
        key: The configuration key of the path, for messages.
        separator: Separator of a CSV file.

    Returns:
        A dataset as `fedsvd.data.load` returns them; ``label`` is a ClassLabel.

    Raises:
        NodeDataError: The file is missing or unreadable, lacks a column, contains labels that the run does not know,
            or has no usable row.
    """
    dataset, left_out = read_node_file(path, columns, labels, key, separator)
    if left_out.reasons:
        logger.warning("%s", left_out)
    return dataset


def read_node_file(
    path: str, columns: Columns, labels: Sequence[str], key: str, separator: str
) -> tuple[Dataset, LeftOut]:
    """Return what `load_node_file` loads and the rows that are left out, without a log entry on them."""
    file_format = Path(path).suffix.lstrip(".").lower()
    if file_format not in NODE_FILE_FORMATS:
        raise NodeDataError(f"{key} = {path!r} has an unsupported format; use {', '.join(NODE_FILE_FORMATS)}.")
    separator_key = "data.separator" if key.startswith("data.") else "separator"
    try:
        table = read_table(file_format, path, key, separator=separator, separator_key=separator_key)
        _check_columns(path, table, columns)
        rows = select_rows(table, columns)
    except NodeDataError:
        raise
    except DataError as error:
        raise NodeDataError(str(error)) from error
    return _to_dataset(path, rows, labels), rows.left_out


def warn_of_limits(splits: DatasetDict, config: DataConfig) -> None:
    """Write to the node's log how many usable rows the run's limits leave out."""
    limits = {"train": ("data-path", config.max_train_examples), "test": ("test-path", config.max_test_examples)}
    for name, (key, limit) in limits.items():
        count = len(splits[name])
        if limit is not None and limit < count:
            logger.warning(
                "%s: %d of its %d usable rows are left out by the run's data.max_%s_examples = %d: the others are "
                "drawn at random",
                key, count - limit, count, name, limit,
            )  # fmt: skip


def check_node_overlap(splits: DatasetDict, path: str, test_path: str, columns: Columns) -> None:
    """Raise `NodeDataError` if a node's files hold the same texts; see `fedsvd.data.overlap.check_overlap`."""
    try:
        remedy = "Set test-path to a file of other texts, or leave it out."
        sources = f"data-path = {path!r}", f"test-path = {test_path!r}"
        check_overlap(splits, *sources, remedy, reads_answers=columns.needs_response)
    except DataError as error:
        raise NodeDataError(str(error)) from error


def empty_dataset(labels: Sequence[str], columns: Columns) -> Dataset:
    """Return a dataset without rows that has the run's columns and classes."""
    roles = {
        "text": columns.text, "text_pair": columns.text_pair, "response": columns.response, "messages": columns.messages
    }  # fmt: skip
    names = [role for role, name in roles.items() if name is not None]
    features = {**dict.fromkeys(names, Value("string")), "label": target_feature(labels, columns.kind)}
    if columns.kind.of_words:
        features["text"] = List(Value("string"))
    return Dataset.from_dict({name: [] for name in features}, features=Features(features))


def describe_rows(dataset: Dataset) -> str:
    """Describe a node's data in one line for its owner: the number of rows of each class, or of all rows."""
    if dataset_classes(dataset) == [ANY_CLASS]:
        return f"rows: {len(dataset)}"
    return "label counts: " + ", ".join(f"{name} = {count}" for name, count in count_labels(dataset).items())


def _check_columns(path: str, table: Table, columns: Columns) -> None:
    missing = missing_columns(table, columns)
    if missing:
        raise NodeDataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.names)}. Set its "
            "column names in the node's configuration: text-column, text-pair-column, label-column, response-column, "
            "messages-column."
        )


def _to_dataset(path: str, rows: Rows, labels: Sequence[str]) -> Dataset:
    """Build the dataset with the run's classes; raise `NodeDataError` if a label is not among them."""
    if not rows.numbers:
        raise NodeDataError(f"{path} has no usable row; check its columns. {rows.left_out}.")
    named, unknown, positions = match_targets(rows.columns["label"], labels, rows.kind)
    if unknown:
        raise NodeDataError(
            f"{path} has labels that the run does not know: {abbreviate(unknown)} in {len(positions)} of {len(named)} "
            f"rows (rows {abbreviate([rows.numbers[i] for i in positions])}). The run's classes "
            f"(data.labels) are {', '.join(labels)}: use these labels, or set label-column to another column."
        )
    found = {name for label in named for name in rows.kind.classes_of(label)}
    absent = sorted(set(labels) - found) if rows.kind.has_classes else []
    if absent:
        logger.warning("%s has no example of %s; only other nodes can provide them", path, abbreviate(absent))
    return build_dataset(replace(rows, columns={**rows.columns, "label": named}), labels)
