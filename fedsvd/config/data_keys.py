"""Keys that would have no effect: those of the group ``data`` that a dataset ignores, and one of two sample rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from fedsvd.config import Config
from fedsvd.config.data import DataConfig
from fedsvd.config.targets import check_no_responses
from fedsvd.errors import ConfigError

_COLUMNS = ("text_column", "text_pair_column", "label_column", "response_column", "messages_column", "label_separator",
            "label_range")  # fmt: skip
_FILE = ("path", "test_path", "test_fraction", *_COLUMNS)
_USED: Mapping[str, tuple[str, ...]] = {
    "movie_reviews": ("test_fraction", "min_abs_rating", "label_range"),
    "sentiment_domains": ("test_fraction", "min_abs_rating", "domains"),
    "reuters_r8": (),
    "newsgroups": (),
    "bbc_news": ("test_fraction",),
    "chitchat": ("test_fraction", *_COLUMNS),
    "csv": (*_FILE, "separator"),
    "jsonl": _FILE,
    "parquet": _FILE,
    "arrow": _FILE,
    "hub": ("path", "subset", "test_split", "test_fraction", *_COLUMNS),
    "node": ("labels", "test_path", "separator", *_COLUMNS),
}
_SPECIFIC = {key for keys in _USED.values() for key in keys}


def check_new_keys(config: Config, overrides: Sequence[str]) -> None:
    """Check that a new run names no column of answers for a classifier, and no fraction of data that are split.

    Earlier versions allowed both, and the directories of their runs stay usable. Some datasets, such as ``dolly``, come
    with answers, which a classifier ignores, or with a fraction.

    Raises:
        ConfigError: The overrides name a column that the task ignores, or ``data.test_fraction`` beside held-out texts.
    """
    if "data.response_column" in _keys(overrides) and config.model.task != "causal_lm":
        check_no_responses(config.model, config.data)
    if "data.test_fraction" in _keys(overrides):
        _check_test_fraction(config.data)


def _check_test_fraction(data: DataConfig) -> None:
    """Raise `ConfigError` if no texts are held out by a fraction that is not the default."""
    is_hub = data.name == "hub"
    key, remedy = ("test_split", "it out, or set data.test_split=null") if is_hub else ("test_path", "one of them out")
    held_out = getattr(data, key) if "test_fraction" in _USED.get(data.name, ()) else None
    if held_out is not None and data.test_fraction != DataConfig.test_fraction:
        raise ConfigError(
            f"data.test_fraction = {data.test_fraction} has no effect with data.{key} = {held_out!r}, whose texts are "
            f"held out: leave {remedy}."
        )


def check_used_keys(data: DataConfig) -> None:
    """Check that every key of a dataset that differs from its default has an effect.

    Raises:
        ConfigError: The dataset ignores a key.
    """
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        # What the loader of another package uses is not known.
        used = _USED.get(data.name, _SPECIFIC)
        if field.name not in _SPECIFIC or field.name in used or value == field.default:
            continue
        shown = list(value) if isinstance(value, tuple) else value
        users = [f"data={name}" for name, keys in _USED.items() if field.name in keys]
        choice = users[0] if len(users) == 1 else f"{', '.join(users[:-1])} or {users[-1]}"
        raise ConfigError(
            f"data.{field.name} = {shown!r} has no effect with data={data.name}, which ignores it: choose {choice}, or "
            f"leave data.{field.name} out."
        )


def check_sampling_keys(config: Config, overrides: Sequence[str]) -> None:
    """Check that overrides do not set both ``train.batch_size`` and ``train.sample_rate``, which replaces it.

    With secure aggregation both are allowed: the batch size is the common divisor of shared noise.

    Raises:
        ConfigError: Both are set.
    """
    keys = _keys(overrides)
    is_both = {"train.batch_size", "train.sample_rate"} <= keys and config.train.sample_rate is not None
    if is_both and not config.federation.secure_aggregation:
        raise ConfigError(
            f"train.batch_size and train.sample_rate = {config.train.sample_rate} are both set, but the sample rate "
            "replaces the batch size: leave one of them out."
        )


def _keys(overrides: Sequence[str]) -> set[str]:
    return {item.partition("=")[0].lstrip("+") for item in overrides}
