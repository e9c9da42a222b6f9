"""User datasets: local files, and datasets on the Hugging Face Hub. The configuration names their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pandas
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd.data.split import hold_out, shuffle_splits
from fedsvd.errors import DataError

# datasets.load_dataset is avoided because it would store a copy of the client's text in the user's cache directory.
_READERS: Mapping[str, Callable[[str], Dataset]] = {
    "csv": lambda path: _from_pandas(pandas.read_csv(path)),
    "jsonl": lambda path: _from_pandas(pandas.read_json(path, lines=True)),
    "parquet": lambda path: _from_pandas(pandas.read_parquet(path)),
    "arrow": lambda path: Dataset.from_file(path) if Path(path).is_file() else datasets.load_from_disk(path),
}
# The label column that is added to data without classes; a name that no file uses.
_ADDED_LABEL = "class of fedsvd"
FILE_FORMATS = tuple(_READERS)


@dataclass(frozen=True)
class Columns:
    """The names of a dataset's columns.

    Attributes:
        text: Column with the text.
        text_pair: Column with the second text of a pair; None for single texts.
        label: Column with the class: a number or any text; None if there are no classes, so that all rows get the same
            one.
        keep: Additional column to retain, as for ``partition=by_column``; None for none.
        response: Column with the answer that a language model learns; None to learn the class name.
    """

    text: str
    text_pair: str | None
    label: str | None
    keep: str | None
    response: str | None = None


def load_files(
    file_format: str, path: str, test_path: str | None, columns: Columns, *, test_fraction: float, seed: int
) -> DatasetDict:
    """Load local files of one format.

    Args:
        file_format: One of `FILE_FORMATS`; ``arrow`` is a directory written by ``Dataset.save_to_disk`` or an
            ``.arrow`` file.
        path: The file (or directory) with the texts.
        test_path: The file with the held-out texts; None to hold out a fraction of ``path``.
        columns: Names of the columns.
        test_fraction: Fraction of rows to hold out if there is no ``test_path``.
        seed: Seed of the shuffle.

    Raises:
        DataError: A file is missing or unreadable, a column is missing, or the labels are unusable.
    """
    train = read_file(file_format, path, "data.path")
    if test_path is None:
        dataset = _normalize(DatasetDict({"train": train}), columns)["train"]
        return hold_out(dataset, test_fraction, seed)
    splits = DatasetDict({"train": train, "test": read_file(file_format, test_path, "data.test_path")})
    return shuffle_splits(_normalize(splits, columns), seed)


def load_hub(
    path: str, subset: str | None, test_split: str | None, columns: Columns, *, test_fraction: float, seed: int
) -> DatasetDict:
    """Load a dataset by its id on the hub, or from a local directory that ``datasets.load_dataset`` supports.

    Args:
        path: Hub id or directory.
        subset: The dataset's configuration name; None if it has only one.
        test_split: The split to hold out; ``train`` is used for training. None to hold out a fraction of ``train``.
        columns: Names of the columns.
        test_fraction: Fraction of rows to hold out if there is no ``test_split``.
        seed: Seed of the shuffle.

    Raises:
        DataError: The dataset is unavailable, or a split or a column is missing.
    """
    try:
        loaded = datasets.load_dataset(path, subset)
    except Exception as error:
        raise DataError(
            f"data.path = {path!r} (data.subset = {subset}) cannot be loaded: {_first_line(error)}. Check the id and "
            "the connection to the hub, or set data.path to a local copy."
        ) from error
    for split in ("train", test_split):
        if split is not None and split not in loaded:
            raise DataError(f"{path} has no split {split!r}; it has {', '.join(loaded)}. Set data.test_split.")
    if test_split is None:
        return hold_out(_normalize(DatasetDict({"train": loaded["train"]}), columns)["train"], test_fraction, seed)
    splits = DatasetDict({"train": loaded["train"], "test": loaded[test_split]})
    return shuffle_splits(_normalize(splits, columns), seed)


def read_file(file_format: str, path: str, key: str) -> Dataset:
    """Read a file with its original columns.

    Args:
        file_format: One of `FILE_FORMATS`.
        path: The file.
        key: The configuration key of the path, for error messages.

    Raises:
        DataError: The file is missing or unreadable.
    """
    if not Path(path).exists():
        raise DataError(f"{key} = {path!r} does not exist; set it to the path of a {file_format} file.")
    try:
        return _READERS[file_format](path)
    except Exception as error:
        raise DataError(f"{key} = {path!r} cannot be read as {file_format}: {_first_line(error)}.") from error


def _normalize(splits: DatasetDict, columns: Columns) -> DatasetDict:
    """Rename columns to ``text``, ``text_pair``, ``label`` and ``response``; drop other columns and incomplete rows."""
    if columns.label is None:
        splits = DatasetDict({split: _add_single_class(dataset) for split, dataset in splits.items()})
        columns = replace(columns, label=_ADDED_LABEL)
    new_names = {
        columns.text: "text", columns.label: "label", columns.text_pair: "text_pair", columns.response: "response",
    }  # fmt: skip
    names = {column: name for column, name in new_names.items() if column is not None}
    required = [*names, *([columns.keep] if columns.keep and columns.keep not in names else [])]
    for split, dataset in splits.items():
        for name in required:
            if name not in dataset.column_names:
                raise DataError(
                    f"the {split} texts have no column {name!r}; they have {', '.join(dataset.column_names)}. Set "
                    "data.text_column, data.text_pair_column, data.label_column, data.response_column and "
                    "partition.column."
                )
    splits = DatasetDict({split: dataset.select_columns(required) for split, dataset in splits.items()})
    splits = splits.rename_columns({old: new for old, new in names.items() if old != new})
    return _encode_labels(splits)


def _add_single_class(dataset: Dataset) -> Dataset:
    return dataset.add_column(_ADDED_LABEL, [0] * len(dataset), feature=ClassLabel(names=["any"]))


def _encode_labels(splits: DatasetDict) -> DatasetDict:
    """Convert ``label`` to a ClassLabel; drop rows with the label -1 or null, as in GLUE's unlabeled test splits."""
    splits = DatasetDict({split: dataset.select(_usable_rows(dataset)) for split, dataset in splits.items()})
    for split, dataset in splits.items():
        if not len(dataset):
            raise DataError(
                f"the {split} texts have no row with both a text and a label; check data.text_column and "
                "data.label_column."
            )
    if isinstance(splits["train"].features["label"], ClassLabel):
        return splits
    labels = {split: [str(label) for label in dataset["label"]] for split, dataset in splits.items()}
    names = sorted(set(labels["train"]), key=lambda name: (len(name), name))
    unknown = set(labels.get("test", [])) - set(names)
    if unknown or len(names) < 2:
        raise DataError(
            f"the training texts have the labels {', '.join(names[:20])}"
            + (f", the held-out texts also {', '.join(sorted(unknown)[:20])}" if unknown else "; expected at least two")
            + ". Check data.label_column."
        )
    classes = ClassLabel(names=names)
    return DatasetDict(
        {
            split: dataset.remove_columns("label").add_column("label", classes.str2int(labels[split]), feature=classes)
            for split, dataset in splits.items()
        }
    )


def _usable_rows(dataset: Dataset) -> list[int]:
    """Return the indices of rows that have a text, a label and, if the dataset has responses, a response."""
    responses = dataset["response"] if "response" in dataset.column_names else dataset["text"]
    rows = zip(dataset["text"], responses, dataset["label"], strict=True)
    return [
        i
        for i, (text, response, label) in enumerate(rows)
        if _is_text(text) and _is_text(response) and label is not None and label != -1
    ]


def _from_pandas(frame: pandas.DataFrame) -> Dataset:
    return Dataset.from_pandas(frame, preserve_index=False)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
