"""Constraints between groups for the labels of a task."""

from __future__ import annotations

from fedsvd.config.data import DataConfig
from fedsvd.config.model import ModelConfig
from fedsvd.config.partition import PartitionConfig
from fedsvd.errors import ConfigError

# Data whose labels can be of any kind; in embedded datasets and those of other packages, a text has one class.
_OWN_LABELS = ("csv", "jsonl", "parquet", "arrow", "hub", "node")
# Embedded datasets whose texts also have a rating.
_RATED = ("movie_reviews",)


def check_targets(model: ModelConfig, data: DataConfig, partition: PartitionConfig) -> None:
    """Reject data that do not have the labels of a task, and keys that have no effect on them.

    Raises:
        ConfigError: The labels do not fit the task, or a key is for the labels of another task.
    """
    keys = {
        f"data.label_range = {list(data.label_range or ())}": (data.label_range is not None, "regression"),
        f"data.label_separator = {data.label_separator!r}": (data.label_separator != ";", "multi_label_classification"),
    }
    for setting, (is_set, task) in keys.items():
        if is_set and model.task != task:
            raise ConfigError(
                f"{setting} has no effect with model.task = {model.task}: leave it out, or set model.task={task}."
            )
    if model.task in ("sequence_classification", "causal_lm"):
        return
    if data.name not in (_OWN_LABELS + _RATED if model.task == "regression" else _OWN_LABELS):
        raise ConfigError(
            f"data = {data.name} is not possible with model.task = {model.task}: each of its texts has one class. "
            "Choose data=csv, jsonl, parquet, arrow, hub or node, or model.task=sequence_classification."
        )
    check_no_responses(model, data)
    if model.task == "token_classification":
        _check_words(data)
    _check_partition(model, data, partition)


def check_no_responses(model: ModelConfig, data: DataConfig) -> None:
    """Raise `ConfigError` if there is a column of answers, which only a language model reads."""
    if data.response_column is not None:
        raise ConfigError(
            f"data.response_column = {data.response_column} has no effect with model.task = {model.task}: set it to "
            "null, or use model.task=causal_lm."
        )


def _check_words(data: DataConfig) -> None:
    """Reject data that cannot hold lists of words, and pairs of texts."""
    if data.name == "csv":
        raise ConfigError(
            "data = csv is not possible with model.task = token_classification, whose texts are lists of words: choose "
            "data=jsonl, parquet, arrow, hub or node."
        )
    if data.text_pair_column is not None:
        raise ConfigError(
            f"data.text_pair_column = {data.text_pair_column} has no effect with model.task = token_classification: "
            "set it to null."
        )


def _check_partition(model: ModelConfig, data: DataConfig, partition: PartitionConfig) -> None:
    """Reject partitions by class. Nodes have data of their own, so no partition has an effect on them."""
    settings = {
        "partition.name = dirichlet": partition.name == "dirichlet",
        f"partition.column = {partition.column}": partition.name == "by_column"
        and partition.column == data.label_column,
    }
    for setting, is_set in settings.items():
        if is_set and data.name != "node":
            raise ConfigError(
                f"{setting} is not possible with model.task = {model.task}, where a text does not have one of several "
                "classes by which texts could be split: set partition=iid or partition=quantity_skew, or use another "
                "column with partition=by_column."
            )
