"""Tests of partitioning and fingerprints: each example goes to one client, and only the seed decides which."""

import hashlib
import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvd.data import fingerprint, partition
from fedsvd.data.values import sorted_values
from fedsvd.errors import DataError


def make_dataset(num_examples: int, num_classes: int = 2) -> Dataset:
    """Return examples sorted by class, each with a unique text."""
    labels = np.sort(np.arange(num_examples) % num_classes)
    return Dataset.from_dict({"text": [f"text {i}" for i in range(num_examples)], "label": labels.tolist()})


def partition_texts(dataset: Dataset, **changes: object) -> list[list[str]]:
    """Return the texts of each partition, by default of a Dirichlet partition into four."""
    arguments = {
        "name": "dirichlet",
        "num_partitions": 4,
        "dirichlet_alpha": 0.5,
        "min_partition_size": 1,
        "seed": 0,
    } | changes
    return [list(part["text"]) for part in partition(dataset, **arguments)]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    name=st.sampled_from(["iid", "dirichlet", "quantity_skew"]),
    num_partitions=st.integers(1, 6),
    num_examples=st.integers(60, 200),
    num_classes=st.integers(1, 4),
    dirichlet_alpha=st.floats(0.8, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_is_in_exactly_one_partition(
    name: str, num_partitions: int, num_examples: int, num_classes: int, dirichlet_alpha: float, seed: int
) -> None:
    dataset = make_dataset(num_examples, num_classes)
    arguments = {"name": name, "num_partitions": num_partitions, "dirichlet_alpha": dirichlet_alpha, "seed": seed}
    parts = partition_texts(dataset, **arguments)
    assert sorted(text for part in parts for text in part) == sorted(dataset["text"])
    assert len(parts) == num_partitions
    assert min(map(len, parts)) >= 1
    assert partition_texts(dataset, **arguments) == parts


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_seed_changes_the_split(name: str) -> None:
    dataset = make_dataset(200)
    assert partition_texts(dataset, name=name, seed=0) != partition_texts(dataset, name=name, seed=1)


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_global_numpy_generator_is_neither_used_nor_changed(name: str) -> None:
    dataset = make_dataset(200)
    np.random.seed(1)
    first = partition_texts(dataset, name=name)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    assert partition_texts(dataset, name=name) == first
    assert np.array_equal(np.random.get_state()[1], before)


def test_iid_balances_sizes_and_classes_of_sorted_data() -> None:
    parts = partition(
        make_dataset(402), name="iid", num_partitions=4, dirichlet_alpha=0.5, min_partition_size=1, seed=0
    )
    assert sorted(map(len, parts)) == [100, 100, 101, 101]
    for part in parts:
        assert 0.3 < np.mean(part["label"]) < 0.7


@pytest.mark.parametrize(("skew", "ratio"), [("linear", 2), ("square", 4), ("exponential", math.e)])
def test_quantity_skew_sizes_follow_the_skew(skew: str, ratio: float) -> None:
    sizes = [
        len(part) for part in partition_texts(make_dataset(3000), name="quantity_skew", skew=skew, num_partitions=3)
    ]
    assert sizes[1] / sizes[0] == pytest.approx(ratio, rel=0.02)
    assert sum(sizes) == 3000


def test_quantity_skew_below_minimum_size_raises() -> None:
    with pytest.raises(DataError, match="gives a client 1 examples, fewer than"):
        partition_texts(
            make_dataset(100), name="quantity_skew", skew="exponential", num_partitions=5, min_partition_size=3
        )


@pytest.mark.parametrize(
    ("skew", "num_examples", "num_partitions"),
    [("exponential", 8033, 10), ("exponential", 900, 800), ("square", 20, 10), ("linear", 100, 60)],
)
def test_quantity_skew_that_leaves_a_client_without_examples_raises(
    skew: str, num_examples: int, num_partitions: int
) -> None:
    # The division into so many parts would give the smallest less than one example.
    with pytest.raises(DataError, match=r"gives a client 0 examples, fewer than .* = 1; lower .*num_clients"):
        partition_texts(make_dataset(num_examples), name="quantity_skew", skew=skew, num_partitions=num_partitions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"column": "town"},
            r"partition\.column = 'town' is not a column of the dataset; set it to one of text, label",
        ),
        ({"column": "label", "num_partitions": 3}, r"2 values \(0, 1\).*set federation\.num_clients=2"),
    ],
)
def test_by_column_with_invalid_column_or_client_count_raises(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_texts(make_dataset(100), name="by_column", **changes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["10", "9.5", "-1e1"], ["-1e1", "9.5", "10"]),
        (["9_1", "10_2"], ["10_2", "9_1"]),
        (["٣", "10"], ["10", "٣"]),
        (["2", "10", "nan"], ["10", "2", "nan"]),
    ],
)
def test_values_are_sorted_by_size_only_if_all_are_numbers(values: list[str], expected: list[str]) -> None:
    assert sorted_values(values) == expected


def test_smaller_alpha_increases_label_skew() -> None:
    def label_spread(dirichlet_alpha: float) -> float:
        parts = partition(
            make_dataset(2000),
            name="dirichlet",
            num_partitions=4,
            dirichlet_alpha=dirichlet_alpha,
            min_partition_size=1,
            seed=0,
        )
        return float(np.std([np.mean(part["label"]) for part in parts]))

    assert label_spread(0.3) > 5 * label_spread(1000.0)


def test_dirichlet_redraws_without_warning_until_the_minimum_is_met() -> None:
    # With seed 1 the first draw gives one client 6 examples; warnings are errors in these tests.
    sizes = [len(part) for part in partition_texts(make_dataset(400), num_partitions=10, min_partition_size=8, seed=1)]
    assert min(sizes) >= 8
    assert min(map(len, partition_texts(make_dataset(400), num_partitions=10, min_partition_size=1, seed=1))) == 6


def test_dirichlet_accepts_any_label_column() -> None:
    dataset = make_dataset(100).rename_column("label", "topic")
    parts = partition(
        dataset,
        name="dirichlet",
        num_partitions=2,
        dirichlet_alpha=1.0,
        min_partition_size=1,
        seed=0,
        label_column="topic",
    )
    assert sum(map(len, parts)) == 100


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_partitions": 0}, r"federation\.num_clients = 0"),
        ({"num_partitions": 11}, "10 examples cannot give 11 clients"),
        ({"num_partitions": 11, "min_partition_size": 0}, "10 examples cannot give 11 clients"),
        ({"num_partitions": 4, "min_partition_size": 3}, "cannot give 4 clients 3 each"),
    ],
)
def test_impossible_sizes_raise(name: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_texts(make_dataset(10), name=name, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "round_robin"}, "'round_robin' .* is unknown; allowed: iid, dirichlet"),
        ({"dirichlet_alpha": 0.0}, r"dirichlet_alpha = 0\.0"),
        ({"dirichlet_alpha": float("nan")}, "dirichlet_alpha = nan"),
        ({"dirichlet_alpha": 0.01, "min_partition_size": 20}, "gives each of 4 clients 20 examples"),
    ],
)
def test_unknown_name_or_impossible_draw_raises(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition_texts(make_dataset(100), **changes)


def test_fingerprint_does_not_depend_on_row_order() -> None:
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    reordered = Dataset.from_dict({"text": ["b", "a"], "label": [1, 0]})
    digests = sorted(hashlib.sha256(row).digest() for row in (b"0\x1fa", b"1\x1fb"))
    assert fingerprint(dataset) == fingerprint(reordered) == hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"text": ["a", "c"], "label": [0, 1]},
        {"text": ["a", "b"], "label": [1, 0]},
        {"text": ["a", "b", "b"], "label": [0, 1, 1]},
        {"text": ["a"], "label": [0]},
        {"text": ["ab", ""], "label": [0, 1]},
    ],
)
def test_fingerprint_changes_with_the_content(changed: dict[str, list[object]]) -> None:
    assert fingerprint(Dataset.from_dict(changed)) != fingerprint(
        Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    )


@pytest.mark.parametrize("column", ["text_pair", "response", "messages"])
def test_fingerprint_covers_every_text_of_a_row(column: str) -> None:
    one, other = (Dataset.from_dict({"text": ["a"], column: [second], "label": [0]}) for second in ("b", "c"))
    assert fingerprint(one) != fingerprint(other)
