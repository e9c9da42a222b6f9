"""Nodes with data of their own: what a run's configuration becomes on one, and which runs do not fit it."""

from typing import Any

import pytest

from client.node_data import with_node_data
from client.node_limits import read_limits
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.data import load
from fedsvd.errors import ConfigError, DataError, LimitError

NODE = ["experiment=smoke", "data=node", "data.labels=[ill,well]", "privacy=none", "train.head=private"]


def view(node_config: dict[str, Any], *words: str) -> Config:
    return with_node_data(compose([*NODE, *words]), node_config)


def test_the_servers_files_are_not_read_on_a_node() -> None:
    seen = view({"data-path": "/data/site.csv"}, "data.test_path=/data/held_out.csv")
    assert (seen.data.path, seen.data.test_path) == ("/data/site.csv", None)


MISFITS: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, [], "data = node, but this node brings no data"),
    ({"data-path": "/data/site.csv"}, ["data=movie_reviews"], "data = movie_reviews, but this node trains on its own"),
    ({"num-partitions": 5}, ["data=movie_reviews"], r"num_clients = 2, but this node holds one of 5 partitions"),
    ({"text-column": "note"}, [], "text-column but no data-path"),
    ({"data-path": 7}, [], "data-path = 7 in the node's configuration; write a text"),
]


@pytest.mark.parametrize(("node_config", "words", "said"), MISFITS)
def test_a_node_that_does_not_fit_a_run_says_why(node_config: dict[str, Any], words: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        view(node_config, *words)


def test_a_misspelt_key_of_a_node_s_own_data_is_no_silence() -> None:
    with pytest.raises(LimitError, match="data-pth"):
        read_limits({"data-pth": "/data/site.csv"})


@pytest.mark.parametrize("words", [["data=node"], ["data=node", "data.labels=[one]"]])
def test_nodes_own_data_need_two_classes(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels"):
        load(compose(["experiment=smoke", *words]).data, 0)


@pytest.mark.parametrize(
    "words",
    [
        "model.task=causal_lm data.label_column=null data.response_column=a",
        "data.response_column=answer",
        "data.evaluate_on=validation",
    ],
)
def test_nodes_own_data_are_texts_with_classes_and_nothing_is_held_out_of_them(words: str) -> None:
    with pytest.raises(ConfigError, match="data=node"):
        load(compose([*NODE, *words.split()]).data, 0)
