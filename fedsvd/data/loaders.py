"""The data sets by the name that ``data=`` gives them."""

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
    """Load a data set as ``train`` and ``test``, shuffled: ``text``, ``label``, perhaps ``text_pair``, ``response``.

    Args:
        config: The group ``data``.
        seed: Of the split and the shuffle.
        keep_column: One more column of a user's own data to carry along.

    Raises:
        DataError: It cannot be had, or a value does not fit it.
        AssetError: An embedded package cannot be had.
        ConfigError: A user's own data without ``data.path``.
    """
    sides = _LOADERS[config.name](config, seed, keep_column)
    sides = limit_examples(sides, config.max_train_examples, config.max_test_examples)
    # Whatever is chosen by what it does on held-out texts must be chosen on others than those it is reported on.
    if config.evaluate_on == "test":
        return sides
    return limit_examples(hold_out(sides["train"], config.validation_fraction, seed), None, None)


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
    """What is here of nodes' own data: at a node, its own file; elsewhere none but the held-out texts, if any."""
    if not config.labels or len(config.labels) < 2:
        raise ConfigError("data=node needs data.labels: give all classes, in order, as in data.labels=[no,yes].")
    if config.evaluate_on != "test":
        raise ConfigError(f"data.evaluate_on = {config.evaluate_on} is not possible with data=node: set it to test.")
    if config.response_column is not None or config.label_column is None:
        raise ConfigError(
            f"data.response_column = {config.response_column} and data.label_column = {config.label_column} are not "
            "possible with data=node: nodes' own texts have classes. Set the first to null and name the other."
        )
    columns, nothing = _columns(config, None), empty_dataset(config.labels, pairs=config.text_pair_column is not None)
    paths = {"train": (config.path, "data-path"), "test": (config.test_path, "data.test_path")}
    return DatasetDict(
        {
            side: load_node_file(path, columns, config.labels, key) if path else nothing
            for side, (path, key) in paths.items()
        }
    )


def _columns(config: DataConfig, keep_column: str | None) -> Columns:
    return Columns(
        config.text_column, config.text_pair_column, config.label_column, keep_column, config.response_column
    )


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise ConfigError(f"data={config.name} needs data.path: give the path or the id of the data.")
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
