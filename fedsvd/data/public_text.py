"""Public text for statistics that cost no privacy: sentences of BBC news, or a user's own file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fedsvd.data.text_files import TextLayout, read_texts
from fedsvd.data.topics import load_bbc_news
from fedsvd.errors import DataError, PublicTextError

EMBEDDED = "embedded:bbc_news"
MAX_TEXTS = 4000
_MIN_TEXTS = 100
_MIN_WORDS = 4


def load_public_text(source: str) -> list[str]:
    """Load at most `MAX_TEXTS` different public texts, evenly spread over the source.

    Args:
        source: ``embedded:bbc_news`` (its sentences), or the path of a file as for `fedsvd.data.text_files.read_texts`.

    Raises:
        PublicTextError: The file is missing or unreadable, or has too few texts.
        AssetError: The package of the embedded texts is unavailable.
    """
    texts = _bbc_sentences() if source == EMBEDDED else _read_file(source)
    if len(texts) < _MIN_TEXTS:
        raise PublicTextError(
            f"model.public_text = {source!r} has {len(texts)} different texts: expected at least {_MIN_TEXTS}, better "
            f"{MAX_TEXTS}. Set it to a file with more texts, or to {EMBEDDED}."
        )
    return spread(texts, MAX_TEXTS)


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Return ``count`` texts at even distances, or all if there are fewer."""
    if len(texts) <= count:
        return list(texts)
    return [texts[index * len(texts) // count] for index in range(count)]


def _bbc_sentences() -> list[str]:
    splits = load_bbc_news(test_fraction=0.5, seed=0)
    # Sorted, so that the order depends neither on the split nor on its shuffle.
    articles = sorted(text for split in splits.values() for text in split["text"][:])
    lines = (line.strip() for article in articles for line in article.splitlines())
    sentences = (sentence for line in lines for sentence in re.split(r"(?<=[.!?])\s+", line))
    return list(dict.fromkeys(sentence for sentence in sentences if len(sentence.split()) >= _MIN_WORDS))


def _read_file(source: str) -> list[str]:
    path = Path(source)
    if not path.is_file():
        raise PublicTextError(
            f"model.public_text = {source!r} is not a file: set it to {EMBEDDED}, or to a file of public texts, "
            "one per line (or .jsonl with the key text)."
        )
    if not path.stat().st_size:
        raise PublicTextError(f"model.public_text = {source!r} is empty: expected one public text per line.")
    # A table may have second texts; only the first are public text.
    layout = TextLayout(formats=("jsonl",), ignore_pairs=True)
    try:
        texts, _, _ = read_texts(path, layout, "model.public_text")
    except DataError as error:
        raise PublicTextError(str(error)) from error
    return list(dict.fromkeys(texts))
