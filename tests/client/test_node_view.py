"""A run's configuration as seen by a node with its own data, and runs that do not fit such a node."""

from typing import Any

import pytest

from client.node_data import with_node_data
from client.node_limits import read_limits
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.data import load
from fedsvd.errors import ConfigError, DataError, LimitError

NODE = ["experiment=smoke", "data=node", "data.labels=[ill,well]", "privacy=none", "train.head=private"]


def node_view(node_config: dict[str, Any], *overrides: str) -> Config:
    return with_node_data(compose([*NODE, *overrides]), node_config)


def test_node_does_not_read_the_servers_files() -> None:
    config = node_view({"data-path": "/data/site.csv"}, "data.test_path=/data/held_out.csv")
    assert (config.data.path, config.data.test_path) == ("/data/site.csv", None)


MISFITS: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, [], "data = node, but this node has no data of its own"),
    (
        {"data-path": "/data/site.csv"},
        ["data=movie_reviews", "data.labels=null"],
        "data = movie_reviews, but this node trains only on its own",
    ),
    (
        {"num-partitions": 5},
        ["data=movie_reviews", "data.labels=null"],
        r"num_clients = 2, but this node has one of 5 partitions",
    ),
    ({"text-column": "note"}, [], "text-column but no data-path"),
    (
        {"data-path": "/data/site.csv", "text-pair-column": "remark"},
        [],
        r"has text-pair-column, but the run reads no such column: remove .* or set data\.text_pair_column in the run",
    ),
    ({"data-path": 7}, [], "data-path = 7 is invalid: expected a quoted string"),
]


@pytest.mark.parametrize(("node_config", "overrides", "message"), MISFITS)
def test_node_that_does_not_fit_a_run_raises(node_config: dict[str, Any], overrides: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        node_view(node_config, *overrides)


def test_misspelled_data_key_of_a_node_raises() -> None:
    with pytest.raises(LimitError, match="data-pth"):
        read_limits({"data-pth": "/data/site.csv"})


@pytest.mark.parametrize("overrides", [["data=node"], ["data=node", "data.labels=[one]"]])
def test_node_data_needs_two_classes(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels"):
        load(compose(["experiment=smoke", *overrides]).data, 0)


@pytest.mark.parametrize(
    ("labels", "first", "second"),
    [("'1','1.0'", "1", "1.0"), ("no,' yes',yes", " yes", "yes"), ("0,'-0'", "0", "-0"), ("1,0,1.0", "1", "1.0")],
)
def test_each_class_of_node_data_is_listed_once(labels: str, first: str, second: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(compose(["experiment=smoke", "data=node", f"data.labels=[{labels}]"]).data, 0)
    assert f"is invalid: {first!r} and {second!r} are one class. List it once." in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.task=causal_lm data.label_column=null data.response_column=a", "data.labels = .* has no effect"),
        ("data.evaluate_on=validation", "unsupported with data=node"),
    ],
)
def test_node_data_have_classes_or_no_labels_and_no_validation_split(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(compose([*NODE, *overrides.split()]).data, 0)
