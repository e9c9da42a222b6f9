"""Dataset loaders, selected by ``data.name``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from datasets import DatasetDict

from fedsvd.config import DataConfig, plugins
from fedsvd.config.task import VALUE
from fedsvd.data.added import checked_splits
from fedsvd.data.chats import chitchat_file
from fedsvd.data.conversations import CanLearn
from fedsvd.data.node_data import check_node_overlap, empty_dataset, load_node_file, read_node_file, warn_of_limits
from fedsvd.data.rows import ANY_CLASS, Columns, LeftOut, drop_unassigned
from fedsvd.data.sentiment import load_movie_reviews, load_sentiment_domains
from fedsvd.data.split import draw_examples, hold_out, limit_examples, shuffle_splits
from fedsvd.data.targets import TargetKind, check_classes, target_kind, used_classes
from fedsvd.data.topics import load_bbc_news, load_newsgroups, load_reuters_r8
from fedsvd.data.user_data import FILE_FORMATS, Loaded, load_files, load_hub
from fedsvd.data.values import repeated_class
from fedsvd.errors import ConfigError

logger = logging.getLogger(__name__)

Loader = Callable[[DataConfig, int, Columns], DatasetDict | Loaded]


@dataclass(frozen=True)
class LoadedData:
    """A loaded dataset.

    Attributes:
        splits: See `load`.
        left_out: The rows of user data that are left out, one item per file that has any.
    """

    splits: DatasetDict
    left_out: tuple[LeftOut, ...] = ()


def load(config: DataConfig, seed: int, keep_column: str | None = None) -> DatasetDict:
    """Load a dataset, shuffled and split into ``train`` and ``test``.

    Args:
        config: The ``data`` configuration group.
        seed: Seed of the split and the shuffle.
        keep_column: Additional column of user data to retain, under the name that `fedsvd.data.rows.stored_name`
            returns. Training rows without a value in it are left out.

    Returns:
        The two splits, with columns ``text`` and ``label`` and, depending on the dataset, ``text_pair`` and
        ``response``; or with ``messages`` (see `fedsvd.data.conversations`) instead of ``text``.

    Raises:
        DataError: The dataset is unavailable, or a configuration value does not match it.
        AssetError: A package with embedded data is unavailable.
        ConfigError: ``data.path`` is missing for user data, or ``data=node`` is combined with an invalid setting.
    """
    return load_data(config, seed, keep_column).splits


def load_data(
    config: DataConfig,
    seed: int,
    keep_column: str | None = None,
    can_learn: CanLearn | None = None,
    task: str = "sequence_classification",
) -> LoadedData:
    """Load a dataset as `load` does, with a record of the rows that are left out.

    Args:
        config: See `load`.
        seed: See `load`.
        keep_column: See `load`.
        can_learn: Whether a model can learn from a conversation; rows with others are left out. None: not checked.
        task: ``model.task``, which determines what a label is; see `fedsvd.data.targets`.
    """
    loaded = _find_loader(config.name, task)(config, seed, columns_of(config, task, keep_column, can_learn))
    splits, left_out = (loaded, []) if isinstance(loaded, DatasetDict) else loaded
    splits = limit_examples(splits, config.max_train_examples, config.max_test_examples)
    if config.evaluate_on != "test":
        # Choices such as hyperparameters must not be made on the test examples that results are reported on.
        splits = limit_examples(hold_out(splits["train"], config.validation_fraction, seed), None, None)
    if keep_column is not None and left_out:
        # After all splits: which rows are held out must not depend on the partition.
        splits["test"], _ = drop_unassigned(splits["test"], None)
        splits["train"], dropped = drop_unassigned(splits["train"], keep_column)
        reasons = {**left_out[0].reasons, **({f"no {keep_column} (partition.column)": dropped} if dropped else {})}
        left_out = [replace(left_out[0], reasons=reasons), *left_out[1:]]
    return LoadedData(splits, tuple(item for item in left_out if item.reasons))


def _find_loader(name: str, task: str) -> Loader:
    loader = plugins.find(plugins.DATA, name, _LOADERS)
    if name in _LOADERS:
        built_in: Loader = loader
        return built_in

    def load_added(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
        kind = target_kind(task, config)
        splits = checked_splits(name, loader(config, seed), one_class=kind.has_classes and not kind.is_list)
        if kind.has_classes and task != "causal_lm":
            check_classes(used_classes(splits["train"]))
        return splits

    return load_added


def _movie_reviews(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
    return load_movie_reviews(
        test_fraction=config.test_fraction,
        min_abs_rating=config.min_abs_rating,
        seed=seed,
        ratings=not columns.kind.has_classes,
    )


def _sentiment_domains(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
    return load_sentiment_domains(
        domains=config.domains, test_fraction=config.test_fraction, min_abs_rating=config.min_abs_rating, seed=seed
    )


def _reuters_r8(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
    return load_reuters_r8(seed=seed)


def _newsgroups(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
    return load_newsgroups(seed=seed)


def _bbc_news(config: DataConfig, seed: int, columns: Columns) -> DatasetDict:
    return load_bbc_news(test_fraction=config.test_fraction, seed=seed)


def _chitchat(config: DataConfig, seed: int, columns: Columns) -> Loaded:
    path = str(chitchat_file())
    return load_files("jsonl", path, None, columns, test_fraction=config.test_fraction, seed=seed)


def _files(config: DataConfig, seed: int, columns: Columns) -> Loaded:
    return load_files(
        config.name,
        data_path(config),
        config.test_path,
        columns,
        test_fraction=config.test_fraction,
        seed=seed,
        separator=config.separator,
    )


def _hub(config: DataConfig, seed: int, columns: Columns) -> Loaded:
    return load_hub(
        data_path(config), config.subset, config.test_split, columns, test_fraction=config.test_fraction, seed=seed
    )


def _node(config: DataConfig, seed: int, columns: Columns) -> Loaded:
    """Load node data: on a node, its own file; elsewhere, only the held-out texts, if there are any."""
    columns, labels = replace(columns, keep=None), _node_labels(config, columns.kind)
    if config.evaluate_on != "test":
        raise ConfigError(f"data.evaluate_on = {config.evaluate_on} is unsupported with data=node: set it to test.")
    empty = empty_dataset(labels, columns)
    # On a node, both are its own files; elsewhere, there is no path, and test_path is a file of the server.
    test_key = "data.test_path" if config.path is None else "test-path"
    splits, left_out = DatasetDict({"train": empty, "test": empty}), []
    if config.path is not None:
        splits["train"] = load_node_file(config.path, columns, labels, "data-path", config.separator)
    if config.test_path is not None:
        splits["test"], rows = read_node_file(config.test_path, columns, labels, test_key, config.separator)
        if config.path is None:
            left_out.append(rows)
        elif rows.reasons:
            logger.warning("%s", rows)
    if config.path is not None:
        warn_of_limits(splits, config)
    if config.path is not None and config.test_path is not None:
        check_node_overlap(splits, config.path, config.test_path, columns)
    splits["train"] = draw_examples(splits["train"], config.max_train_examples, seed)
    return shuffle_splits(splits, seed), left_out


def _node_labels(config: DataConfig, kind: TargetKind) -> Sequence[str]:
    """Return the classes of nodes' data, which no file lists."""
    if config.label_column is None or not kind.has_classes:
        if config.labels is not None:
            reason, remedy = (
                ("data.label_column = None", "name the column of the classes")
                if kind.has_classes
                else ("model.task = regression, whose labels are numbers", "choose another task")
            )
            raise ConfigError(
                f"data.labels = {list(config.labels)} has no effect with {reason}: leave it out, or {remedy}."
            )
        return [ANY_CLASS] if kind.has_classes else [VALUE]
    if not config.labels or len(config.labels) < 2:
        raise ConfigError(
            f"data.labels = {config.labels} is invalid with data=node: list at least two classes, in order, as in "
            "data.labels=[no,yes]. For a language model, data.label_column=null means that there are no classes."
        )
    if same := repeated_class(config.labels):
        raise ConfigError(
            f"data.labels = {list(config.labels)} is invalid: {same[0]!r} and {same[1]!r} are one class. List it once."
        )
    return config.labels


def columns_of(
    config: DataConfig, task: str, keep_column: str | None = None, can_learn: CanLearn | None = None
) -> Columns:
    """Return the names of the columns in user data; for the arguments see `load_data`."""
    return Columns(
        config.text_column if config.messages_column is None else None,
        config.text_pair_column,
        config.label_column,
        keep_column,
        config.response_column,
        config.messages_column,
        can_learn,
        target_kind(task, config),
        needs_response=task == "causal_lm",
    )


def data_path(config: DataConfig) -> str:
    """Return ``data.path``; raises `ConfigError` if it is not set."""
    if config.path is None:
        raise ConfigError(f"data={config.name} needs data.path: set it to the path or the hub id of the dataset.")
    return config.path


_LOADERS: Mapping[str, Loader] = {
    "movie_reviews": _movie_reviews,
    "sentiment_domains": _sentiment_domains,
    "reuters_r8": _reuters_r8,
    "newsgroups": _newsgroups,
    "bbc_news": _bbc_news,
    "chitchat": _chitchat,
    "hub": _hub,
    "node": _node,
    **dict.fromkeys(FILE_FORMATS, _files),
}
