"""Dataset loaders, selected by ``data.name``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from datasets import DatasetDict

from fedsvd.config import DataConfig
from fedsvd.data.node_data import empty_dataset, load_node_file
from fedsvd.data.sentiment import load_movie_reviews, load_sentiment_domains
from fedsvd.data.split import hold_out, limit_examples
from fedsvd.data.topics import load_bbc_news, load_newsgroups, load_reuters_r8
from fedsvd.data.user_data import FILE_FORMATS, Columns, load_files, load_hub
from fedsvd.errors import ConfigError


def load(config: DataConfig, seed: int, keep_column: str | None = None) -> DatasetDict:
    """Load a dataset, shuffled and split into ``train`` and ``test``.

    Args:
        config: The ``data`` configuration group.
        seed: Seed of the split and the shuffle.
        keep_column: Additional column of user data to retain.

    Returns:
        The two splits, with columns ``text`` and ``label`` and, depending on the dataset, ``text_pair`` and
        ``response``.

    Raises:
        DataError: The dataset is unavailable, or a configuration value does not match it.
        AssetError: A package with embedded data is unavailable.
        ConfigError: ``data.path`` is missing for user data, or ``data=node`` is combined with an invalid setting.
    """
    splits = _LOADERS[config.name](config, seed, keep_column)
    splits = limit_examples(splits, config.max_train_examples, config.max_test_examples)
    if config.evaluate_on == "test":
        return splits
    # Choices such as hyperparameters must not be made on the test examples that results are reported on.
    return limit_examples(hold_out(splits["train"], config.validation_fraction, seed), None, None)


def _movie_reviews(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_movie_reviews(test_fraction=config.test_fraction, min_abs_rating=config.min_abs_rating, seed=seed)


def _sentiment_domains(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_sentiment_domains(
        domains=config.domains, test_fraction=config.test_fraction, min_abs_rating=config.min_abs_rating, seed=seed
    )


def _reuters_r8(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_reuters_r8(seed=seed)


def _newsgroups(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_newsgroups(seed=seed)


def _bbc_news(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_bbc_news(test_fraction=config.test_fraction, seed=seed)


def _files(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_files(
        config.name,
        _path(config),
        config.test_path,
        _columns(config, keep_column),
        test_fraction=config.test_fraction,
        seed=seed,
    )


def _hub(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    return load_hub(
        _path(config),
        config.subset,
        config.test_split,
        _columns(config, keep_column),
        test_fraction=config.test_fraction,
        seed=seed,
    )


def _node(config: DataConfig, seed: int, keep_column: str | None) -> DatasetDict:
    """Load node data: on a node, its own file; elsewhere, only the held-out texts, if there are any."""
    if not config.labels or len(config.labels) < 2:
        raise ConfigError(
            f"data.labels = {config.labels} is invalid with data=node: list at least two classes, in order, as in "
            "data.labels=[no,yes]."
        )
    if config.evaluate_on != "test":
        raise ConfigError(f"data.evaluate_on = {config.evaluate_on} is unsupported with data=node: set it to test.")
    if config.response_column is not None or config.label_column is None:
        raise ConfigError(
            f"data.response_column = {config.response_column} with data.label_column = {config.label_column} is "
            "unsupported with data=node, which supports classification only: set data.response_column to null and "
            "data.label_column to the column with the labels."
        )
    columns, empty = _columns(config, None), empty_dataset(config.labels, pairs=config.text_pair_column is not None)
    paths = {"train": (config.path, "data-path"), "test": (config.test_path, "data.test_path")}
    return DatasetDict(
        {
            split: load_node_file(path, columns, config.labels, key) if path else empty
            for split, (path, key) in paths.items()
        }
    )


def _columns(config: DataConfig, keep_column: str | None) -> Columns:
    return Columns(
        config.text_column, config.text_pair_column, config.label_column, keep_column, config.response_column
    )


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise ConfigError(f"data={config.name} needs data.path: set it to the path or the hub id of the dataset.")
    return config.path


_LOADERS: Mapping[str, Callable[[DataConfig, int, str | None], DatasetDict]] = {
    "movie_reviews": _movie_reviews,
    "sentiment_domains": _sentiment_domains,
    "reuters_r8": _reuters_r8,
    "newsgroups": _newsgroups,
    "bbc_news": _bbc_news,
    "hub": _hub,
    "node": _node,
    **dict.fromkeys(FILE_FORMATS, _files),
}
