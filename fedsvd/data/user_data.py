"""Data that a user brings: local files, and data sets on a hub. Columns are named in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pandas
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd.data.split import hold_out, shuffle_splits
from fedsvd.errors import DataError

# Not datasets.load_dataset: that would leave a copy of the silo's text in the user's cache folder.
_READERS: Mapping[str, Callable[[str], Dataset]] = {
    "csv": lambda path: _from_pandas(pandas.read_csv(path)),
    "jsonl": lambda path: _from_pandas(pandas.read_json(path, lines=True)),
    "parquet": lambda path: _from_pandas(pandas.read_parquet(path)),
    "arrow": lambda path: Dataset.from_file(path) if Path(path).is_file() else datasets.load_from_disk(path),
}
# A column that no file has.
_ONE_CLASS = "class of fedsvd"
FILE_FORMATS = tuple(_READERS)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        text: The text.
        text_pair: The second text of a pair; None where there is one text.
        label: The class: a number, a name, or any text; None where there is none, and all are of one.
        keep: One more column to carry along, as for ``partition=by_column``; None for none.
        response: The answer that a language model learns; None where it is the class.
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
        file_format: One of `FILE_FORMATS`; ``arrow`` is a folder of ``Dataset.save_to_disk`` or one ``.arrow`` file.
        path: The file (or folder) with the texts.
        test_path: Held-out texts; None holds out a share of ``path``.
        columns: Names of the columns.
        test_fraction: The share held out where there is no ``test_path``.
        seed: Of the shuffle.

    Raises:
        DataError: A file that is not there or cannot be read, a column that it does not have, or unusable labels.
    """
    train = read_file(file_format, path, "data.path")
    if test_path is None:
        whole = _in_shape(DatasetDict({"train": train}), columns)["train"]
        return hold_out(whole, test_fraction, seed)
    sides = DatasetDict({"train": train, "test": read_file(file_format, test_path, "data.test_path")})
    return shuffle_splits(_in_shape(sides, columns), seed)


def load_hub(
    path: str, subset: str | None, test_split: str | None, columns: Columns, *, test_fraction: float, seed: int
) -> DatasetDict:
    """Load a data set by its id on the hub (or a local folder that ``datasets.load_dataset`` knows).

    Args:
        path: Id or folder.
        subset: Its configuration; None for the only one.
        test_split: The split that is held out; ``train`` is trained on. None holds out a share of that.
        columns: Names of the columns.
        test_fraction: The share held out where there is no ``test_split``.
        seed: Of the shuffle.

    Raises:
        DataError: It cannot be had, or lacks a split or a column.
    """
    try:
        loaded = datasets.load_dataset(path, subset)
    except Exception as error:
        raise DataError(
            f"data.path = {path!r} (subset {subset}) cannot be loaded: {_first_line(error)}. Check the id and the "
            "connection to the hub, or point data.path to a local copy."
        ) from error
    for split in ("train", test_split):
        if split is not None and split not in loaded:
            raise DataError(f"{path} has no split {split!r}; it has {', '.join(loaded)}. Set data.test_split.")
    if test_split is None:
        return hold_out(_in_shape(DatasetDict({"train": loaded["train"]}), columns)["train"], test_fraction, seed)
    sides = DatasetDict({"train": loaded["train"], "test": loaded[test_split]})
    return shuffle_splits(_in_shape(sides, columns), seed)


def read_file(file_format: str, path: str, key: str) -> Dataset:
    """Read a file of one of `FILE_FORMATS` as it is; ``key`` says in a `DataError` where its path was given."""
    if not Path(path).exists():
        raise DataError(f"{key} = {path!r} is not there; give the path of a {file_format} file.")
    try:
        return _READERS[file_format](path)
    except Exception as error:
        raise DataError(f"{key} = {path!r} cannot be read as {file_format}: {_first_line(error)}.") from error


def _in_shape(sides: DatasetDict, columns: Columns) -> DatasetDict:
    """Rename columns to ``text``, ``text_pair``, ``label`` and ``response``, drop the others and rows that lack one."""
    if columns.label is None:
        sides = DatasetDict({side: _of_one_class(dataset) for side, dataset in sides.items()})
        columns = replace(columns, label=_ONE_CLASS)
    given = {
        columns.text: "text", columns.label: "label", columns.text_pair: "text_pair", columns.response: "response",
    }  # fmt: skip
    names = {column: name for column, name in given.items() if column is not None}
    wanted = [*names, *([columns.keep] if columns.keep and columns.keep not in names else [])]
    for side, dataset in sides.items():
        for name in wanted:
            if name not in dataset.column_names:
                raise DataError(
                    f"the {side} texts have no column {name!r}; they have {', '.join(dataset.column_names)}. Set "
                    "data.text_column, data.text_pair_column, data.label_column, data.response_column and "
                    "partition.column."
                )
    sides = DatasetDict({side: dataset.select_columns(wanted) for side, dataset in sides.items()})
    sides = sides.rename_columns({old: new for old, new in names.items() if old != new})
    return _with_classes(sides)


def _of_one_class(dataset: Dataset) -> Dataset:
    return dataset.add_column(_ONE_CLASS, [0] * len(dataset), feature=ClassLabel(names=["any"]))


def _with_classes(sides: DatasetDict) -> DatasetDict:
    """Make ``label`` a ClassLabel; -1 and null (as in the hidden labels of GLUE's tests) are no labels."""
    sides = DatasetDict({side: dataset.select(_usable(dataset)) for side, dataset in sides.items()})
    if not all(len(side) for side in sides.values()):
        raise DataError("a side has no row with both a text and a label; check data.text_column and data.label_column.")
    if isinstance(sides["train"].features["label"], ClassLabel):
        return sides
    labels = {side: [str(label) for label in dataset["label"]] for side, dataset in sides.items()}
    names = sorted(set(labels["train"]), key=lambda name: (len(name), name))
    unseen = set(labels.get("test", [])) - set(names)
    if unseen or len(names) < 2:
        raise DataError(
            f"the training texts have the labels {', '.join(names[:20])}"
            + (f", the held-out ones also {', '.join(sorted(unseen)[:20])}" if unseen else ", which is no choice")
            + ". Check data.label_column."
        )
    classes = ClassLabel(names=names)
    return DatasetDict(
        {
            side: dataset.remove_columns("label").add_column("label", classes.str2int(labels[side]), feature=classes)
            for side, dataset in sides.items()
        }
    )


def _usable(dataset: Dataset) -> list[int]:
    answers = dataset["response"] if "response" in dataset.column_names else dataset["text"]
    rows = zip(dataset["text"], answers, dataset["label"], strict=True)
    return [
        i
        for i, (text, answer, label) in enumerate(rows)
        if _is_text(text) and _is_text(answer) and label is not None and label != -1
    ]


def _from_pandas(frame: pandas.DataFrame) -> Dataset:
    return Dataset.from_pandas(frame, preserve_index=False)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
