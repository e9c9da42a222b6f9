"""A node's own data: one file, held against what the run asks for. What is wrong with it is told to its owner alone."""

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
_SHOWN = 5


def load_node_file(path: str, columns: Columns, labels: Sequence[str], key: str = "data-path") -> Dataset:
    """Load a node's own file, and check that the run can be trained on it.

    Rows without a text or a label are left out, and counted in the node's log.

    Args:
        path: The file; its ending is its format, one of `NODE_FILE_FORMATS`.
        columns: Names of its columns.
        labels: The run's classes, in the order of their numbers.
        key: Where the path was given, for the message.

    Returns:
        Columns ``text``, ``label`` (a ClassLabel) and, of pairs, ``text_pair``.

    Raises:
        SiloError: A file that is not there or cannot be read, a column that it lacks, labels that the run does not
            know, or no row that could be used.
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
    lacking = [name for name in names.values() if name not in table.column_names]
    if lacking:
        raise NodeDataError(
            f"{path} has no column {', '.join(map(repr, lacking))}; it has {', '.join(table.column_names)}. Name its "
            "own columns in the node's configuration: text-column, text-pair-column, label-column."
        )
    rows = list(zip(*(table[name] for name in names.values()), strict=True))
    # The number of a row as an editor shows it: a CSV file has its header in the first.
    first = 2 if file_format == "csv" else 1
    kept = {first + i: row for i, row in enumerate(rows) if _is_text(row[0]) and _label(row[1]) is not None}
    if len(kept) < len(rows):
        lost = [number for number in range(first, first + len(rows)) if number not in kept]
        logger.warning(
            "%s: %d of %d rows have no text or no label and are left out (rows %s)",
            path,
            len(lost),
            len(rows),
            _few(lost),
        )
    _check_labels(path, {number: str(_label(row[1])) for number, row in kept.items()}, labels)
    numbers = {label: number for number, label in enumerate(labels)}
    data = {"text": [row[0] for row in kept.values()], "label": [numbers[str(_label(row[1]))] for row in kept.values()]}
    if columns.text_pair is not None:
        data["text_pair"] = [str(row[2]) for row in kept.values()]
    return Dataset.from_dict(data, features=_features(labels, pairs=columns.text_pair is not None))


def empty_dataset(labels: Sequence[str], *, pairs: bool) -> Dataset:
    """Return a data set of no rows that knows its classes."""
    features = _features(labels, pairs=pairs)
    return Dataset.from_dict({name: [] for name in features}, features=features)


def _features(labels: Sequence[str], *, pairs: bool) -> Features:
    texts = {"text_pair": Value("string")} if pairs else {}
    return Features({"text": Value("string"), "label": ClassLabel(names=list(labels)), **texts})


def count_labels(dataset: Dataset) -> dict[str, int]:
    """Count a data set's rows by class."""
    names = dataset.features["label"].names
    found = Counter(dataset["label"])
    return {name: found[number] for number, name in enumerate(names)}


def _check_labels(path: str, found: dict[int, str], labels: Sequence[str]) -> None:
    if not found:
        raise NodeDataError(f"{path} has no row with both a text and a label; check its columns.")
    strange = {number: label for number, label in found.items() if label not in labels}
    if strange:
        raise NodeDataError(
            f"{path} has labels that the run does not know: {_few(sorted(set(strange.values())))} in {len(strange)} of "
            f"{len(found)} rows (rows {_few(list(strange))}). The run's classes (data.labels) are {', '.join(labels)}: "
            "write them so, or name another label-column."
        )
    missing = sorted(set(labels) - set(found.values()))
    if missing:
        logger.warning("%s has no example of %s; the other nodes' must do", path, _few(missing))


def _label(value: object) -> str | None:
    """Return a label as the run writes it; numbers beside empty cells come out of pandas with a point."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _few(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", …" if len(values) > _SHOWN else "")
