"""Limits on the examples of nodes: each node draws its own part at random."""

import logging
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from client.node_data import with_node_data
from fedsvd.config.compose import compose
from fedsvd.data.loaders import load
from fedsvd.data.split import draw_examples
from fedsvd.runtime.data import load_client_data, load_fingerprint, load_partition

NODE = ["model=tiny", "data=node", "data.labels=[a,b]", "federation=remote", "federation.weighting=uniform"]


def by_class(path: Path, count: int = 40, word: str = "text") -> Path:
    """Write a file that is sorted by class."""
    rows = [f"{word} {n},{'ab'[n >= count // 2]}" for n in range(count)]
    path.write_text("\n".join(["text,label", *rows, ",a", ""]))
    return path


def test_a_limit_is_of_each_node() -> None:
    assert compose([*NODE, "federation.num_clients=20", "data.max_train_examples=10"]).data.max_train_examples == 10


def test_a_node_draws_its_examples_at_random_and_counts_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = by_class(tmp_path / "site.csv")
    node = {"data-path": str(path), "test-path": str(by_class(tmp_path / "test.csv", word="test"))}
    limits = ["data.max_train_examples=10", "data.max_test_examples=30"]
    config = with_node_data(compose([*NODE, *limits]), node)
    with caplog.at_level(logging.WARNING):
        first = load(config.data, 0)

    assert [len(first["train"]), len(first["test"])] == [10, 30]
    assert [set(split["label"]) for split in first.values()] == [{0, 1}, {0, 1}]
    assert first["train"]["text"] == load(config.data, 0)["train"]["text"] != load(config.data, 1)["train"]["text"]
    assert f"data-path = '{path}': 1 of 41 rows are left out: 1 with no text (row 42)" in caplog.text
    for key, count in (("data-path", "30 of its 40"), ("test-path", "10 of its 40")):
        assert f"{key}: {count} usable rows are left out by the run's data.max_" in caplog.text
    assert "data.max_train_examples = 10: the others are drawn at random" in caplog.text
    # Without a limit, the order is that of the seed as well, as for every other data set.
    everything = load_partition(with_node_data(compose(NODE), node), 0)["text"][:]
    assert sorted(everything) == sorted(f"text {n}" for n in range(40)) != everything


def test_a_ledger_is_bound_to_the_whole_file(tmp_path: Path) -> None:
    node = {"data-path": str(by_class(tmp_path / "site.csv"))}
    runs = [["seed=0"], ["seed=1"], ["data.max_train_examples=10"], ["data.max_train_examples=10", "seed=1"]]
    configs = [with_node_data(compose([*NODE, *run]), node) for run in runs]

    # Otherwise another seed would get around an earlier account, which is closed for the same data.
    assert len({load_client_data(config, 0).fingerprint for config in configs}) == 1
    assert {load_fingerprint(config, 0) for config in configs} == {load_client_data(configs[0], 0).fingerprint}
    assert len(load_client_data(configs[-1], 0).examples) == 10


def test_the_server_draws_its_held_out_texts_as_from_any_other_file(tmp_path: Path) -> None:
    path = by_class(tmp_path / "held_out.csv")
    held_out = [f"data.test_path={path}", "data.max_test_examples=12"]
    node = load(compose([*NODE, *held_out]).data, 3)["test"]
    train = by_class(tmp_path / "train.csv", word="train")
    own = load(compose(["data=csv", f"data.path={train}", *held_out]).data, 3)["test"]

    assert set(node["label"]) == set(own["label"]) == {0, 1}
    assert len(node) == len(own) == 12


@given(
    rows=st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=40), added=st.sampled_from("abcdz"), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_one_more_row_changes_at_most_one_other_row_of_the_draw(
    rows: list[str], added: str, data: st.DataObject
) -> None:
    count, place = data.draw(st.integers(1, len(rows))), data.draw(st.integers(0, len(rows)))
    more = [*rows[:place], added, *rows[place:]]
    drawn = [
        Counter(draw_examples(Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), count, seed=3)["text"][:])
        for texts in (rows, more)
    ]
    assert sum((drawn[0] - drawn[1]).values()) <= 1
    assert sum(drawn[1].values()) == count


def test_a_node_keeps_its_draw_when_its_file_grows(tmp_path: Path) -> None:
    config = compose([*NODE, "data.max_train_examples=10"])
    draws = []
    for count in (40, 42):
        path = tmp_path / f"{count}.csv"
        path.write_text("\n".join(["text,label", *(f"text {n},{'ab'[n % 2]}" for n in range(count))]))
        draws.append(set(load(with_node_data(config, {"data-path": str(path)}).data, 0)["train"]["text"]))
    assert len(draws[0] & draws[1]) >= 8


def test_a_draw_is_uniform_and_depends_on_the_seed() -> None:
    rows = Dataset.from_dict({"text": [str(n) for n in range(20)], "label": [0] * 20})
    drawn = Counter(text for seed in range(400) for text in draw_examples(rows, 5, seed)["text"])
    # Each is drawn in a quarter of the seeds, with a standard deviation of 8.7.
    assert all(60 < drawn[str(n)] < 140 for n in range(20))
    assert draw_examples(rows, None, 0) is draw_examples(rows, 20, 0) is rows
