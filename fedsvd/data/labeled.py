"""Labeled texts for the evaluation of a finished model: all rows of the named data, with the model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from fedsvd.config import DataConfig
from fedsvd.data.conversations import CanLearn
from fedsvd.data.loaders import LoadedData, columns_of, data_path, load_data
from fedsvd.data.node_data import NODE_FILE_FORMATS
from fedsvd.data.readers import FILE_FORMATS, read_table
from fedsvd.data.rows import ANY_CLASS, LeftOut, Rows, build_dataset
from fedsvd.data.split import shuffle_splits
from fedsvd.data.table import Table
from fedsvd.data.targets import used_classes, with_positions
from fedsvd.data.user_data import label_rows, read_hub, select_named
from fedsvd.data.values import match_classes
from fedsvd.errors import ConfigError, DataError


@dataclass(frozen=True)
class LabeledTexts:
    """Labeled texts.

    Attributes:
        rows: Dataset as `fedsvd.data.load` returns them; ``label`` is the position in the model's classes.
        description: What they are.
        left_out: The rows that are left out, one item per file that has any.
    """

    rows: Dataset
    description: str
    left_out: Sequence[LeftOut] = ()


def held_out_texts(loaded: LoadedData, config: DataConfig, classes: Sequence[str], *, task: str) -> LabeledTexts:
    """Return the held-out set of a run's own data.

    Args:
        loaded: The data; see `fedsvd.data.loaders.load_data`.
        config: The ``data`` configuration group that they were loaded with.
        classes: The classes that the model knows.
        task: ``model.task``.

    Raises:
        DataError: A row has a class that the model does not know, or nothing is held out.
    """
    if not len(loaded.splits["test"]):
        raise DataError(
            f"data={config.name} holds out no texts: set data.test_path to a file of labeled texts, or choose other "
            "data with data=…."
        )
    kind = "validation set" if config.evaluate_on == "validation" else "held-out set"
    rows = with_classes(loaded.splits["test"], classes, task)
    return LabeledTexts(rows, f"the {kind} of the run's own data (data={config.name})", loaded.left_out)


def load_all_texts(
    config: DataConfig,
    seed: int,
    classes: Sequence[str],
    *,
    every_split: bool,
    can_learn: CanLearn | None = None,
    task: str = "sequence_classification",
) -> LabeledTexts:
    """Load all labeled texts of a dataset.

    Args:
        config: The ``data`` configuration group. Of files, ``test_path`` is loaded if it is set, otherwise ``path``;
            of a dataset on the hub, the split ``test_split`` if it is set, otherwise ``train``. ``max_test_examples``
            limits their number; the training set's keys have no effect.
        seed: Seed of the choice if their number is limited.
        classes: The classes that the model knows.
        every_split: Load both files, or both splits of a dataset on the hub.
        can_learn: See `fedsvd.data.loaders.load_data`.
        task: See `fedsvd.data.loaders.load_data`.

    Raises:
        DataError: See `fedsvd.data.load`; also for classes that the model does not know.
        ConfigError: There is no path.
    """
    tables = _tables(config, every_split)
    if tables is None:
        splits = load_data(replace(config, max_test_examples=None), seed, can_learn=can_learn, task=task).splits
        everything = concatenate_datasets([splits["train"], splits["test"]])
        loaded = LabeledTexts(with_classes(everything, classes, task), f"all texts of data={config.name}")
    else:
        columns = columns_of(config, task, can_learn=can_learn)
        selected = [select_named(table, columns, "labeled") for table in tables]
        parts = [_with_classes(rows, classes, config, task) for rows in selected]
        sources = " and ".join(table.source for table in tables)
        left_out = [rows.left_out for rows in selected if rows.left_out.reasons]
        dataset = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
        loaded = LabeledTexts(dataset, f"all rows of {sources} (data={config.name})", left_out)
    limit = config.max_test_examples
    if limit is None or limit >= len(loaded.rows):
        return loaded
    # The rows of a file may be sorted by class.
    shuffled = shuffle_splits(DatasetDict({"test": loaded.rows}), seed)["test"]
    return replace(loaded, rows=shuffled.select(range(limit)), description=f"a random part of {loaded.description}")


def with_classes(rows: Dataset, classes: Sequence[str], task: str) -> Dataset:
    """Map the labels of a dataset by class name to the positions in the model's classes.

    The classes of a language model's rows with answers of their own, which it does not predict, may be others.

    Raises:
        DataError: A row has a class that the model does not know.
    """
    used = used_classes(rows)
    unknown = set(used) - set(classes)
    has_answers = used == [ANY_CLASS] or bool({"response", "messages"} & set(rows.column_names))
    if unknown and has_answers and task == "causal_lm":
        return rows
    if unknown:
        raise DataError(
            f"the data have the classes {', '.join(used[:20])}, but the model knows {', '.join(classes[:20])}. Choose "
            "data with the same class names, or rename the classes."
        )
    return with_positions(rows, classes)


def _with_classes(rows: Rows, classes: Sequence[str], config: DataConfig, task: str) -> Dataset:
    names = list(dict.fromkeys(rows.columns["label"]))
    has_answers = config.label_column is None or config.response_column is not None or config.row_format == "messages"
    if has_answers and task == "causal_lm" and None in match_classes(names, classes):
        # As in `with_classes`.
        return build_dataset(rows, names)
    return label_rows(rows, classes, "the model knows", "the data have")


def _tables(config: DataConfig, every_split: bool) -> list[Table] | None:
    """Read the tables with the labeled texts; None for an embedded dataset.

    Raises:
        ConfigError: There is no path.
    """
    if config.name == "hub":
        splits = [config.test_split] if config.test_split else ["train"]
        splits = list(dict.fromkeys(["train", *splits])) if every_split else splits
        return read_hub(data_path(config), config.subset, splits)
    if config.name not in (*FILE_FORMATS, "node"):
        return None
    paths = {"data.test_path": config.test_path, "data.path": config.path}
    named = [(key, path) for key, path in paths.items() if path is not None]
    if not named:
        raise ConfigError(f"data={config.name} needs data.path: set it to a file of labeled texts.")
    return [
        read_table(_format(config, key, path), path, key, separator=config.separator)
        for key, path in (named if every_split else named[:1])
    ]


def _format(config: DataConfig, key: str, path: str) -> str:
    if config.name != "node":
        return config.name
    file_format = Path(path).suffix.lstrip(".").lower()
    if file_format not in NODE_FILE_FORMATS:
        raise DataError(f"{key} = {path!r} has an unsupported format; use {', '.join(NODE_FILE_FORMATS)}.")
    return file_format
