"""Texts as lists of words with one tag per word, for token classification.

Tags have the BIO scheme (Ramshaw and Marcus 1995, arXiv cmp-lg/9505040): ``B-TYPE`` starts a span of a type, ``I-TYPE``
continues it, and ``O`` is outside of every span. A model reads the words with spaces between them. It predicts the tag
of a word at its first token; the other tokens do not enter the loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd.data.instructions import IGNORED
from fedsvd.data.values import to_class_name, to_text
from fedsvd.errors import DataError

_TAG = re.compile(r"O|[BI]-.+")


def read_words(cell: object) -> list[str]:
    """Read a list of words.

    Raises:
        DataError: The cell holds something else, or a word is blank.
    """
    words = [to_text(item) for item in _items(cell, "words")]
    if not all(word.strip() for word in words):
        raise DataError("holds a blank word: remove it and its tag")
    return words


def read_tags(cell: object) -> tuple[str, ...]:
    """Read a list of tags.

    Raises:
        DataError: The cell holds something else, or a tag is not of the BIO scheme.
    """
    tags = tuple(to_class_name(item) for item in _items(cell, "tags"))
    wrong = next((tag for tag in tags if not _TAG.fullmatch(tag)), None)
    if wrong is not None:
        raise DataError(f"holds the tag {wrong!r}: expected O, B-TYPE or I-TYPE")
    return tags


def locate_words(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[int | None]]:
    """Tokenize a text.

    Args:
        words: The words of the text.
        tokenizer: The model's tokenizer.
        max_length: Longer texts are truncated to so many tokens.

    Returns:
        The token ids, and the position of the first token of each word; None if it is truncated, or has no token.

    Raises:
        DataError: The tokenizer does not say to which characters its tokens belong.
    """
    if not tokenizer.is_fast:
        raise DataError(
            "model.task = token_classification is not possible: the model's tokenizer does not say to which characters "
            "its tokens belong. Choose a model with a fast tokenizer."
        )
    encoded = tokenizer(" ".join(words), truncation=True, max_length=max_length, return_offsets_mapping=True)
    ends = list(accumulate(len(word) + 1 for word in words))
    positions: list[int | None] = [None] * len(words)
    word = 0
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if start < end:
            # By its last character: the first one may be the space before the word.
            while ends[word] < end:
                word += 1
            if positions[word] is None:
                positions[word] = position
    return list(encoded["input_ids"]), positions


def tokenize_words(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenize texts of words and align their tags.

    Returns:
        A dataset with columns ``input_ids`` and ``labels``: the tag at the first token of each word, and -100 at all
        other tokens.

    Raises:
        DataError: See `locate_words`.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for words, tags in zip(dataset["text"][:], dataset["label"][:], strict=True):
        ids, positions = locate_words(words, tokenizer, max_length)
        labels = [IGNORED] * len(ids)
        for position, tag in zip(positions, tags, strict=True):
            if position is not None:
                labels[position] = tag
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    return Dataset.from_dict(columns)


def _items(cell: object, kind: str) -> Sequence[object]:
    if not isinstance(cell, (list, tuple)):
        raise DataError(f"holds {to_text(cell)!r}: expected a list of {kind} (JSON lines, Parquet or Arrow)")
    if None in cell:
        raise DataError(f"holds a list of {kind} with a missing one: write all of them")
    return cell
