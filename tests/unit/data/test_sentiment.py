"""Tests of the embedded movie reviews: labels, disjoint splits and size limits."""

from collections import Counter
from itertools import pairwise

import pytest
from datasets import Dataset, DatasetDict

from fedsvd.data.sentiment import load_movie_reviews
from fedsvd.data.split import hold_out_documents, limit_examples
from fedsvd.errors import DataError


@pytest.fixture(scope="module")
def reviews() -> DatasetDict:
    return load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=0)


def test_movie_review_sizes_and_class_balance(reviews: DatasetDict) -> None:
    # 5,061 negative and 4,982 positive snippets with |rating| > 0.5, minus two duplicates (one in each class).
    counts = {split: Counter(reviews[split]["label"]) for split in reviews}
    assert counts == {"train": {0: 4048, 1: 3985}, "test": {0: 1012, 1: 996}}
    assert reviews["train"].features["label"].names == ["negative", "positive"]


def test_zero_threshold_drops_only_texts_rated_exactly_zero() -> None:
    splits = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0)
    assert sum(len(split) for split in splits.values()) == 10605 - 37 - 2


@pytest.mark.slow
def test_label_is_the_sign_of_the_rating() -> None:
    splits = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0)
    labels = {
        text: label for split in splits.values() for text, label in zip(split["text"], split["label"], strict=True)
    }
    assert labels["Effective but too tepid biopic"] == 0  # rated -0.6
    assert next(label for text, label in labels.items() if text.startswith("The Rock is destined")) == 1  # rated 2.27


def test_text_is_unescaped_and_stripped(reviews: DatasetDict) -> None:
    texts = [text for split in reviews.values() for text in split["text"]]
    assert not [text for text in texts if "&amp;" in text or "&quot;" in text or "\r" in text]
    assert all(text and text == text.strip() for text in texts)
    assert any("’" in text for text in texts)  # read as UTF-8


@pytest.mark.parametrize("seed", [0, 1])
def test_no_text_occurs_twice(seed: int) -> None:
    splits = load_movie_reviews(test_fraction=0.3, min_abs_rating=0.5, seed=seed)
    texts = [text for split in splits.values() for text in split["text"]]
    assert len(texts) == len(set(texts))


@pytest.mark.slow
def test_split_depends_only_on_the_seed(reviews: DatasetDict) -> None:
    same_seed = load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=0)
    other_seed = load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=1)
    for split in reviews:
        assert list(same_seed[split]["text"]) == list(reviews[split]["text"])
        assert set(other_seed[split]["text"]) != set(reviews[split]["text"])


def test_classes_are_shuffled(reviews: DatasetDict) -> None:
    # The source is nearly sorted by class: the class changes 599 times in 10,605 lines. After a uniform shuffle it
    # changes at about half of the lines.
    labels = list(reviews["train"]["label"])
    changes = sum(label != following for label, following in pairwise(labels))
    assert 0.45 < changes / len(labels) < 0.55


def test_limit_examples_selects_the_first_rows(reviews: DatasetDict) -> None:
    limited = limit_examples(reviews, 100, 50)
    assert list(limited["train"]["text"]) == list(reviews["train"]["text"])[:100]
    assert list(limited["test"]["text"]) == list(reviews["test"]["text"])[:50]
    assert [len(split) for split in limit_examples(reviews, None, 10**9).values()] == [8033, 2008]
    for key, limits in (("max_train_examples", (0, None)), ("max_test_examples", (None, -5))):
        with pytest.raises(DataError, match=rf"data\.{key} = "):
            limit_examples(reviews, *limits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("test_fraction", -0.1),
        ("test_fraction", 1e-9),
        ("min_abs_rating", 9.0),
    ],
)
def test_invalid_values_raise(key: str, value: float) -> None:
    arguments = {"test_fraction": 0.2, "min_abs_rating": 0.5, "seed": 0, key: value}
    with pytest.raises(DataError, match=rf"data\.{key} = {value}"):
        load_movie_reviews(**arguments)


def test_ratings_have_the_sign_of_the_class() -> None:
    rated = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0, ratings=True)
    classes = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0)
    assert {name: len(split) for name, split in rated.items()} == {"train": 8453, "test": 2113}
    by_text = {row["text"]: row["label"] for split in classes.values() for row in split}
    rows = [row for split in rated.values() for row in split]
    assert len(by_text) == len(rows)
    assert all((row["label"] > 0) == by_text[row["text"]] and -4 <= row["label"] <= 4 for row in rows)


def test_rows_of_one_document_are_held_out_together() -> None:
    documents = [f"document {number % 7}" for number in range(40)]
    rows = Dataset.from_dict({"text": documents, "label": [0] * 40})

    splits = hold_out_documents(rows, documents, 0.3, seed=0)

    train, test = (Counter(splits[name]["text"]) for name in ("train", "test"))
    assert (len(train), len(test)) == (5, 2)
    assert train + test == Counter(documents)
    assert not train.keys() & test.keys()
