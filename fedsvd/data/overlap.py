"""Held-out texts that are also training texts, on which no estimate for other texts is possible."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from datasets import Dataset, DatasetDict

from fedsvd.errors import DataError

logger = logging.getLogger(__name__)

# What a model reads of a row; the same text with another label is still a training text.
_READ = ("text", "text_pair", "messages")
_ANSWER = ("response",)


def check_overlap(splits: DatasetDict, train: str, test: str, remedy: str, *, reads_answers: bool) -> None:
    """Check that two files do not hold the same texts, in any order and format, and warn of texts in common.

    Args:
        splits: The usable rows of both, as ``train`` and ``test``.
        train: Where the training texts come from, for messages.
        test: Where the held-out texts come from.
        remedy: What to do instead.
        reads_answers: Whether the model reads the answers, as a language model does; the same prompt with another
            answer is another text then.

    Raises:
        DataError: Both hold the same texts, as if one were a copy of the other.
    """
    read = _READ + _ANSWER if reads_answers else _READ
    training, held_out = _texts(splits["train"], read), _texts(splits["test"], read)
    if training == held_out:
        raise DataError(
            f"{test} holds the same {held_out.total()} texts as {train}: a model would be evaluated on its training "
            f"texts. {remedy}"
        )
    common = sum(count for text, count in held_out.items() if text in training)
    if common:
        logger.warning(
            "%d of the %d texts in %s are also training texts: remove them from one of both, since results on them are "
            "no estimate for other texts",
            common, held_out.total(), test,
        )  # fmt: skip


def _texts(dataset: Dataset, read: Sequence[str]) -> Counter[str]:
    columns = [dataset[name][:] for name in read if name in dataset.column_names]
    return Counter(map(repr, zip(*columns, strict=True)))
