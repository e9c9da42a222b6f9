"""User datasets: local files, and datasets on the Hugging Face Hub. The configuration names their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import datasets
from datasets import Dataset, DatasetDict

from fedsvd.data import targets
from fedsvd.data.overlap import check_overlap
from fedsvd.data.readers import FILE_FORMATS, dataset_table, read_table
from fedsvd.data.rows import Columns, LeftOut, Rows, build_dataset, missing_columns, select_rows
from fedsvd.data.split import hold_out, shuffle_splits
from fedsvd.data.table import Table
from fedsvd.data.values import abbreviate
from fedsvd.errors import DataError, first_line

__all__ = ["FILE_FORMATS", "Columns", "label_rows", "load_files", "load_hub", "read_hub", "select_named"]

Loaded = tuple[DatasetDict, list[LeftOut]]
_MAX_CLASSES = 20


def load_files(
    file_format: str,
    path: str,
    test_path: str | None,
    columns: Columns,
    *,
    test_fraction: float,
    seed: int,
    separator: str = ",",
) -> Loaded:
    """Load local files of one format.

    Args:
        file_format: One of `FILE_FORMATS`; ``arrow`` is a directory written by ``Dataset.save_to_disk`` or an
            ``.arrow`` file.
        path: The file (or directory) with the texts.
        test_path: The file with the held-out texts; None to hold out a fraction of ``path``.
        columns: Names of the columns.
        test_fraction: Fraction of rows to hold out if there is no ``test_path``.
        seed: Seed of the shuffle.
        separator: Separator of CSV files.

    Returns:
        The splits, and the rows of each file that are left out.

    Raises:
        DataError: A file is missing or unreadable, a column is missing, the labels are unusable, or both files hold
            the same texts.
    """
    tables = {"train": read_table(file_format, path, "data.path", separator=separator)}
    if test_path is not None:
        tables["test"] = read_table(file_format, test_path, "data.test_path", separator=separator)
    return _split(tables, columns, test_fraction, seed)


def load_hub(
    path: str, subset: str | None, test_split: str | None, columns: Columns, *, test_fraction: float, seed: int
) -> Loaded:
    """Load a dataset by its id on the hub, or from a local directory that ``datasets.load_dataset`` supports.

    Args:
        path: Hub id or directory.
        subset: The dataset's configuration name; None if it has only one.
        test_split: The split to hold out; ``train`` is used for training. None to hold out a fraction of ``train``.
        columns: Names of the columns.
        test_fraction: Fraction of rows to hold out if there is no ``test_split``.
        seed: Seed of the shuffle.

    Returns:
        The splits, and the rows of each split that are left out.

    Raises:
        DataError: The dataset is unavailable, a split or a column is missing, or both splits hold the same texts.
    """
    names = {"train": "train", **({} if test_split is None else {"test": test_split})}
    tables = dict(zip(names, read_hub(path, subset, list(names.values())), strict=True))
    return _split(tables, columns, test_fraction, seed)


def read_hub(path: str, subset: str | None, splits: Sequence[str]) -> list[Table]:
    """Read splits of a dataset on the hub; see `load_hub`."""
    try:
        loaded = datasets.load_dataset(path, subset)
    except Exception as error:
        raise DataError(
            f"data.path = {path!r} (data.subset = {subset}) cannot be loaded: {first_line(error)}. Check the id and "
            "the connection to the hub, or set data.path to a local copy."
        ) from error
    for split in splits:
        if split not in loaded:
            raise DataError(f"{path} has no split {split!r}; it has {', '.join(loaded)}. Set data.test_split.")
    return [dataset_table(loaded[split], f"data.path = {path!r}, split {split!r}") for split in splits]


def select_named(table: Table, columns: Columns, split: str) -> Rows:
    """Select a table's usable rows; see `fedsvd.data.rows.select_rows`.

    Raises:
        DataError: A named column is missing, or no row is usable.
    """
    missing = missing_columns(table, columns)
    if missing:
        raise DataError(
            f"{table.source}: the {split} texts have no column {missing[0]!r}; they have {column_list(table)}. Set "
            "data.text_column, data.text_pair_column, data.label_column, data.response_column, data.messages_column "
            "and partition.column (null: there is none), or data.separator if the names are not separate."
        )
    rows = select_rows(table, columns)
    if not rows.numbers:
        raise DataError(f"the {split} texts have no usable row; check the names of the columns. {rows.left_out}.")
    return rows


def column_list(table: Table) -> str:
    """Return the names of a table's columns for a message; quoted where blanks would not be visible."""
    return ", ".join(name if name == name.strip() else repr(name) for name in table.names)


def label_rows(rows: Rows, class_names: Sequence[str], owner: str, other: str) -> Dataset:
    """Build a dataset with the given classes, which are matched by name.

    Args:
        rows: The rows.
        class_names: The classes, in order.
        owner: Where the classes come from, with a verb, for messages.
        other: What the rows are, for messages.

    Raises:
        DataError: The rows have other classes.
    """
    named, unknown, positions = targets.match_targets(rows.columns["label"], class_names, rows.kind)
    if unknown:
        numbers = abbreviate([rows.numbers[i] for i in positions])
        raise DataError(
            f"{owner} {abbreviate(class_names, _MAX_CLASSES)}, {other} also {abbreviate(unknown, _MAX_CLASSES)} "
            f"(row{'s' if len(positions) > 1 else ''} {numbers} of {rows.source}). Correct these labels, or check "
            "data.label_column."
        )
    return build_dataset(replace(rows, columns={**rows.columns, "label": named}), class_names)


def _split(tables: Mapping[str, Table], columns: Columns, test_fraction: float, seed: int) -> Loaded:
    """Select the usable rows of one table, which is split, or of two."""
    # Held-out rows belong to no client.
    used = {"train": columns, "test": replace(columns, keep=None)}
    rows = {split: select_named(table, used[split], split) for split, table in tables.items()}
    left_out = [selected.left_out for selected in rows.values()]
    names = _class_names(rows["train"], columns)
    owner = "the training texts have the labels"
    splits = DatasetDict(
        {split: label_rows(selected, names, owner, "the held-out texts") for split, selected in rows.items()}
    )
    if "test" in splits:
        remedy = "Name other held-out texts, or none (null), to hold out data.test_fraction of the training texts."
        sources = tables["train"].source, tables["test"].source
        check_overlap(splits, *sources, remedy, reads_answers=columns.needs_response)
        return shuffle_splits(splits, seed), left_out
    return hold_out(splits["train"], test_fraction, seed), left_out


def _class_names(rows: Rows, columns: Columns) -> list[str]:
    """Return the classes: those that the file lists, or those that occur, the shortest names first.

    Raises:
        DataError: Fewer than two classes occur.
    """
    listed = rows.class_names if rows.kind.has_classes else None
    if listed is not None and columns.label is None:
        return list(listed)
    # A dataset that has lost rows still lists their classes.
    occurring = targets.class_names(rows.columns["label"], rows.kind)
    return occurring if listed is None else list(listed)
