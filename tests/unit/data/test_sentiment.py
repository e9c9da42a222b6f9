"""Movie reviews: the real embedded text, split without a text on both sides."""

from collections import Counter
from itertools import pairwise

import pytest
from datasets import DatasetDict

from fedsvd.data.sentiment import load_movie_reviews
from fedsvd.data.split import limit_examples
from fedsvd.errors import DataError


@pytest.fixture(scope="module")
def reviews() -> DatasetDict:
    return load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=0)


def test_sizes_and_class_balance(reviews: DatasetDict) -> None:
    # 5,061 negative and 4,982 positive snippets rated beyond 0.5, less two that occur twice (one in each class).
    counts = {side: Counter(reviews[side]["label"]) for side in reviews}
    assert counts == {"train": {0: 4048, 1: 3985}, "test": {0: 1012, 1: 996}}
    assert reviews["train"].features["label"].names == ["negative", "positive"]


def test_a_threshold_of_zero_drops_only_those_rated_exactly_zero() -> None:
    sides = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0)
    assert sum(len(side) for side in sides.values()) == 10605 - 37 - 2


def test_a_snippet_has_the_sign_of_its_rating() -> None:
    sides = load_movie_reviews(test_fraction=0.2, min_abs_rating=0, seed=0)
    labels = {text: label for side in sides.values() for text, label in zip(side["text"], side["label"], strict=True)}
    assert labels["Effective but too tepid biopic"] == 0  # rated -0.6
    assert next(label for text, label in labels.items() if text.startswith("The Rock is destined")) == 1  # rated 2.27


def test_text_is_unescaped_and_whole(reviews: DatasetDict) -> None:
    texts = [text for side in reviews.values() for text in side["text"]]
    assert not [text for text in texts if "&amp;" in text or "&quot;" in text or "\r" in text]
    assert all(text and text == text.strip() for text in texts)
    assert any("’" in text for text in texts)  # read as UTF-8


@pytest.mark.parametrize("seed", [0, 1])
def test_no_text_is_on_both_sides_or_twice(seed: int) -> None:
    sides = load_movie_reviews(test_fraction=0.3, min_abs_rating=0.5, seed=seed)
    texts = [text for side in sides.values() for text in side["text"]]
    assert len(texts) == len(set(texts))


def test_the_seed_alone_decides_the_split(reviews: DatasetDict) -> None:
    again = load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=0)
    other = load_movie_reviews(test_fraction=0.2, min_abs_rating=0.5, seed=1)
    for side in reviews:
        assert list(again[side]["text"]) == list(reviews[side]["text"])
        assert set(other[side]["text"]) != set(reviews[side]["text"])


def test_both_classes_come_mixed(reviews: DatasetDict) -> None:
    # The source is nearly sorted by class: 599 changes of class in 10,605 lines. A fair shuffle has about half.
    labels = list(reviews["train"]["label"])
    changes = sum(one != other for one, other in pairwise(labels))
    assert 0.45 < changes / len(labels) < 0.55


def test_limits_keep_the_first_of_the_shuffle(reviews: DatasetDict) -> None:
    few = limit_examples(reviews, 100, 50)
    assert list(few["train"]["text"]) == list(reviews["train"]["text"])[:100]
    assert list(few["test"]["text"]) == list(reviews["test"]["text"])[:50]
    assert [len(side) for side in limit_examples(reviews, None, 10**9).values()] == [8033, 2008]
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
def test_impossible_values_are_named(key: str, value: float) -> None:
    arguments = {"test_fraction": 0.2, "min_abs_rating": 0.5, "seed": 0, key: value}
    with pytest.raises(DataError, match=rf"data\.{key} = {value}"):
        load_movie_reviews(**arguments)
