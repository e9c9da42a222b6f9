"""Partitions: each example with exactly one client, by the seed alone."""

import hashlib
import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvd.data import fingerprint, partition
from fedsvd.errors import DataError


def examples(num_examples: int, num_classes: int = 2) -> Dataset:
    """Examples sorted by class, each with a text of its own."""
    labels = np.sort(np.arange(num_examples) % num_classes)
    return Dataset.from_dict({"text": [f"text {i}" for i in range(num_examples)], "label": labels.tolist()})


def split(dataset: Dataset, **changes: object) -> list[list[str]]:
    arguments = {
        "name": "dirichlet",
        "num_partitions": 4,
        "dirichlet_alpha": 0.5,
        "min_partition_size": 1,
        "seed": 0,
    } | changes
    return [list(part["text"]) for part in partition(dataset, **arguments)]


@settings(deadline=None, max_examples=60)
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
    dataset = examples(num_examples, num_classes)
    arguments = {"name": name, "num_partitions": num_partitions, "dirichlet_alpha": dirichlet_alpha, "seed": seed}
    parts = split(dataset, **arguments)
    assert sorted(text for part in parts for text in part) == sorted(dataset["text"])
    assert len(parts) == num_partitions
    assert min(map(len, parts)) >= 1
    assert split(dataset, **arguments) == parts


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_another_seed_gives_another_split(name: str) -> None:
    dataset = examples(200)
    assert split(dataset, name=name, seed=0) != split(dataset, name=name, seed=1)


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_numpys_global_generator_has_no_part_in_it(name: str) -> None:
    dataset = examples(200)
    np.random.seed(1)
    first = split(dataset, name=name)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    assert split(dataset, name=name) == first
    assert np.array_equal(np.random.get_state()[1], before)


def test_iid_gives_equal_sizes_and_both_classes_from_data_sorted_by_class() -> None:
    parts = partition(examples(402), name="iid", num_partitions=4, dirichlet_alpha=0.5, min_partition_size=1, seed=0)
    assert sorted(map(len, parts)) == [100, 100, 101, 101]
    for part in parts:
        assert 0.3 < np.mean(part["label"]) < 0.7


@pytest.mark.parametrize(("skew", "ratio"), [("linear", 2), ("square", 4), ("exponential", math.e)])
def test_sizes_grow_as_their_skew_says(skew: str, ratio: float) -> None:
    sizes = [len(part) for part in split(examples(3000), name="quantity_skew", skew=skew, num_partitions=3)]
    assert sizes[1] / sizes[0] == pytest.approx(ratio, rel=0.02)
    assert sum(sizes) == 3000


def test_a_skew_that_leaves_a_client_too_little_is_named() -> None:
    with pytest.raises(DataError, match="gives a client 1 examples, fewer than"):
        split(examples(100), name="quantity_skew", skew="exponential", num_partitions=5, min_partition_size=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"column": "town"}, r"partition\.column = 'town' is not a column of the data, which have text, label"),
        ({"column": "label", "num_partitions": 3}, r"2 values \(0, 1\).*set federation\.num_clients=2"),
    ],
)
def test_columns_that_make_no_clients_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        split(examples(100), name="by_column", **changes)


def test_a_smaller_alpha_makes_clients_less_alike() -> None:
    def spread(dirichlet_alpha: float) -> float:
        parts = partition(
            examples(2000),
            name="dirichlet",
            num_partitions=4,
            dirichlet_alpha=dirichlet_alpha,
            min_partition_size=1,
            seed=0,
        )
        return float(np.std([np.mean(part["label"]) for part in parts]))

    assert spread(0.3) > 5 * spread(1000.0)


def test_draws_again_in_silence_until_each_client_holds_enough() -> None:
    # With seed 1 the first draw leaves a client 6 examples; warnings are errors in these tests.
    sizes = [len(part) for part in split(examples(400), num_partitions=10, min_partition_size=8, seed=1)]
    assert min(sizes) >= 8
    assert min(map(len, split(examples(400), num_partitions=10, min_partition_size=1, seed=1))) == 6


def test_any_label_column_can_be_dealt_out() -> None:
    dataset = examples(100).rename_column("label", "topic")
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
    ("changes", "said"),
    [
        ({"num_partitions": 0}, r"federation\.num_clients = 0"),
        ({"num_partitions": 11}, "10 examples cannot give 11 clients"),
        ({"num_partitions": 11, "min_partition_size": 0}, "10 examples cannot give 11 clients"),
        ({"num_partitions": 4, "min_partition_size": 3}, "cannot give 4 clients 3 each"),
    ],
)
def test_impossible_requests_are_named(name: str, changes: dict[str, int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        split(examples(10), name=name, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "round_robin"}, "'round_robin' .* is not known; allowed: iid, dirichlet"),
        ({"dirichlet_alpha": 0.0}, r"dirichlet_alpha = 0\.0"),
        ({"dirichlet_alpha": float("nan")}, "dirichlet_alpha = nan"),
        ({"dirichlet_alpha": 0.01, "min_partition_size": 20}, "gives each of 4 clients 20 examples"),
    ],
)
def test_impossible_draws_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        split(examples(100), **changes)


def test_a_fingerprint_is_that_of_the_content_in_any_order() -> None:
    one = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    other_order = Dataset.from_dict({"text": ["b", "a"], "label": [1, 0]})
    leaves = sorted(hashlib.sha256(row).digest() for row in (b"0\x1fa", b"1\x1fb"))
    assert fingerprint(one) == fingerprint(other_order) == hashlib.sha256(b"".join(leaves)).hexdigest()


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
def test_other_content_has_another_fingerprint(changed: dict[str, list[object]]) -> None:
    assert fingerprint(Dataset.from_dict(changed)) != fingerprint(
        Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    )
