"""Which keys of the group ``data`` each dataset uses; a key that it would ignore is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fedsvd.config.model import DataConfig
from fedsvd.errors import ConfigError

_COLUMNS = ("text_column", "text_pair_column", "label_column", "response_column")
_FILE = ("path", "test_path", "test_fraction", *_COLUMNS)
_USED: Mapping[str, tuple[str, ...]] = {
    "movie_reviews": ("test_fraction", "min_abs_rating"),
    "sentiment_domains": ("test_fraction", "min_abs_rating", "domains"),
    "reuters_r8": (),
    "newsgroups": (),
    "bbc_news": ("test_fraction",),
    "csv": (*_FILE, "separator"),
    "jsonl": _FILE,
    "parquet": _FILE,
    "arrow": _FILE,
    "hub": ("path", "subset", "test_split", "test_fraction", *_COLUMNS),
    "node": ("labels", "test_path", "separator", *_COLUMNS),
}
_SPECIFIC = {key for keys in _USED.values() for key in keys}


def check_used_keys(data: DataConfig) -> None:
    """Check that every key of a dataset that differs from its default has an effect.

    Raises:
        ConfigError: The dataset ignores a key.
    """
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if field.name not in _SPECIFIC or field.name in _USED[data.name] or value == field.default:
            continue
        shown = list(value) if isinstance(value, tuple) else value
        users = [f"data={name}" for name, keys in _USED.items() if field.name in keys]
        choice = users[0] if len(users) == 1 else f"{', '.join(users[:-1])} or {users[-1]}"
        raise ConfigError(
            f"data.{field.name} = {shown!r} has no effect with data={data.name}, which ignores it: choose {choice}, or "
            f"leave data.{field.name} out."
        )
