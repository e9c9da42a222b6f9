"""What a finished run's model accepts: single texts, pairs of texts, conversations, or lists of words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from reprlib import repr as shorten
from typing import Any

from fedsvd.config import Config
from fedsvd.data.conversations import to_conversation
from fedsvd.errors import ConfigError, DataError


def check_inputs(config: Config, texts: object, pairs: object = None) -> tuple[list[Any], list[str] | None]:
    """Check that texts are what the model of a run was trained on.

    Args:
        config: The configuration of the run.
        texts: The texts, as for `fedsvd.trained.prediction.predict`.
        pairs: The second text of each pair; None for single texts.

    Returns:
        Both as lists.

    Raises:
        ConfigError: An argument is no list, an item is no text, or there is not one second text for each text of a
            model of text pairs, and none for any other model.
        DataError: A conversation is invalid.
    """
    first = _to_list(texts, "texts")
    for index, item in enumerate(first):
        _check_item(config, item, f"texts[{index}]")
    return first, _check_pairs(config, len(first), pairs)


def _check_pairs(config: Config, count: int, pairs: object) -> list[str] | None:
    expects_pairs = config.data.text_pair_column is not None
    if pairs is None:
        if expects_pairs:
            raise ConfigError(
                "this run's model expects pairs of texts, and there are only first ones: give one second text for each "
                "text, with pairs in Python, and with --text-pair or a file with both columns on the command line."
            )
        return None
    if not expects_pairs:
        raise ConfigError(
            "this run's model expects single texts, and there are second texts: leave out pairs, or --text-pair on the "
            "command line."
        )
    second = _to_list(pairs, "pairs")
    for index, item in enumerate(second):
        _check_text(item, f"pairs[{index}]", "a text (str)")
    if len(second) != count:
        raise ConfigError(f"pairs has {len(second)} texts, and texts has {count}: give one second text for each text.")
    return second


def _to_list(value: object, name: str) -> list[Any]:
    if isinstance(value, str):
        # Its characters would be taken for texts.
        raise ConfigError(f"{name} = {shorten(value)} is one text: expected a list of texts. Write [{shorten(value)}].")
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} = {shorten(value)} is invalid: expected a list of texts.")
    return list(value)


def _check_item(config: Config, item: object, name: str) -> None:
    if config.data.row_format == "messages" and not isinstance(item, str):
        try:
            to_conversation(item)
        except DataError as error:
            raise DataError(f"{name} {error}.") from error
    elif config.model.task == "token_classification" and isinstance(item, (list, tuple)):
        for index, word in enumerate(item):
            _check_text(word, f"{name}[{index}]", "a word (str)")
    else:
        is_tagged = config.model.task == "token_classification"
        _check_text(item, name, "a text (str), or a list of its words" if is_tagged else "a text (str)")


def _check_text(item: object, name: str, expected: str) -> None:
    if not isinstance(item, str):
        raise ConfigError(f"{name} = {shorten(item)} is invalid: expected {expected}.")
    if item.encode("utf-8", "ignore").decode() != item:
        # As bytes of the command line that are not UTF-8 arrive.
        raise ConfigError(f"{name} = {shorten(item)} is invalid: it is not valid Unicode. Pass it as UTF-8.")
