"""Constraints between groups for class weights."""

from __future__ import annotations

from fedsvd.config.data import DataConfig
from fedsvd.config.model import ModelConfig
from fedsvd.config.train import TrainConfig
from fedsvd.errors import ConfigError

# Where balanced weights come from without ``train.label_counts``, as recorded in ``run.json``.
HELD_OUT = "the labels of the held-out texts"


def check_class_weights(model: ModelConfig, data: DataConfig, train: TrainConfig) -> None:
    """Reject class weights for other tasks, and those that would have to be computed from private labels.

    Raises:
        ConfigError: The model has no classes, a key has no effect, or no public counts are known.
    """
    if train.class_weights is None and train.label_counts is None:
        return
    key = "label_counts" if train.class_weights is None else "class_weights"
    if model.task != "sequence_classification":
        raise ConfigError(
            f"train.{key} = {_shown(getattr(train, key))} is not possible with model.task = {model.task}: only a "
            "classifier that assigns one class to a text has class weights. Set it to null."
        )
    if train.label_counts is not None and train.class_weights != "balanced":
        raise ConfigError(
            f"train.label_counts = {_shown(train.label_counts)} has no effect with train.class_weights = "
            f"{_shown(train.class_weights)}: set train.class_weights=balanced, or leave it out."
        )
    if train.class_weights == "balanced" and train.label_counts is None and data.name == "node":
        raise ConfigError(
            "train.class_weights = balanced is not possible with data=node: the numbers of the nodes' labels are "
            "private. Give public numbers of examples per class in train.label_counts, or the weights themselves."
        )


def _shown(value: object) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)
