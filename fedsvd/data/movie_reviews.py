"""Movie-review snippets with mean ratings (Hutto and Gilbert 2014, ICWSM): the embedded default."""

from __future__ import annotations

import html
import io
import tarfile

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.assets import VADER, fetch
from fedsvd.errors import DataError

_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})


def load_movie_reviews(
    *,
    test_fraction: float,
    min_abs_rating: float,
    seed: int,
    max_train_examples: int | None = None,
    max_test_examples: int | None = None,
) -> DatasetDict:
    """Load the snippets as ``train`` and ``test``, each shuffled, with both classes in their share of the whole.

    A text's label is the sign of its mean rating. A text that occurs twice is kept once, so that none is on both sides.
    The source numbers its snippets one by one and names no review or film, so snippets of one review can end up on
    both sides; no split can prevent it.

    Args:
        test_fraction: Share held out, between 0 and 1.
        min_abs_rating: Texts whose rating is no further from zero are left out; 0 leaves out those rated exactly 0.
        seed: Of the shuffle.
        max_train_examples: Keep the first so many after the shuffle.
        max_test_examples: The same for the held-out part.

    Raises:
        AssetError: The package cannot be had.
        DataError: A value out of range, or too few texts are left for both sides.
    """
    _check(test_fraction, max_train_examples, max_test_examples)
    rated = {text: rating for rating, text in _read() if abs(rating) > min_abs_rating}
    texts = list(rated)
    labels = np.array([int(rating > 0) for rating in rated.values()])
    generator = np.random.default_rng(seed)
    test: list[int] = []
    train: list[int] = []
    for label in (0, 1):
        order = generator.permutation(np.flatnonzero(labels == label))
        cut = round(len(order) * test_fraction)
        test += order[:cut].tolist()
        train += order[cut:].tolist()
    sides = {
        "train": generator.permutation(train)[:max_train_examples],
        "test": generator.permutation(test)[:max_test_examples],
    }
    if not all(len(side) for side in sides.values()):
        raise DataError(
            f"data.test_fraction = {test_fraction} of the {len(texts)} texts rated beyond data.min_abs_rating = "
            f"{min_abs_rating} leaves one side empty; choose values that leave texts for both."
        )
    return DatasetDict({name: _dataset(texts, labels, side) for name, side in sides.items()})


def _check(test_fraction: float, max_train_examples: int | None, max_test_examples: int | None) -> None:
    if not 0 < test_fraction < 1:
        raise DataError(f"data.test_fraction = {test_fraction} is no share; give a number between 0 and 1.")
    for key, limit in (("max_train_examples", max_train_examples), ("max_test_examples", max_test_examples)):
        if limit is not None and limit < 1:
            raise DataError(f"data.{key} = {limit} leaves nothing; give 1 or more, or null for all.")


def _dataset(texts: list[str], labels: np.ndarray, positions: np.ndarray) -> Dataset:
    rows = {"text": [texts[int(i)] for i in positions], "label": [int(labels[int(i)]) for i in positions]}
    return Dataset.from_dict(rows, features=_FEATURES)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise DataError(f"{name} in the embedded archive is not a file.")
    return stream.read()


def _read() -> list[tuple[float, str]]:
    with tarfile.open(fetch(VADER)) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, _OUTER))) as inner:
        lines = _member(inner, _INNER).decode("utf-8").splitlines()
    rows = (line.split("\t", 2) for line in lines if line.strip())
    return [(float(rating), html.unescape(text).strip()) for _, rating, text in rows]
