"""Constraints between groups for the classification head."""

from __future__ import annotations

from fedsvd.config.data import DataConfig
from fedsvd.config.model import ModelConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.task import ONE_PREDICTION_TASKS
from fedsvd.config.train import TrainConfig
from fedsvd.errors import ConfigError


def check_head(model: ModelConfig, data: DataConfig, train: TrainConfig, privacy: PrivacyConfig) -> None:
    """Reject settings of the head that have no effect or cannot be used together.

    Raises:
        ConfigError: A language model or a frozen head has settings of a trained head, or the head's initialization
            does not fit its features.
    """
    if model.task == "causal_lm":
        _check_no_head(train, privacy)
        return
    if privacy.name == "dp_sgd" and privacy.head_clipping_share is not None and train.head == "frozen":
        raise ConfigError(
            f"privacy.head_clipping_share = {privacy.head_clipping_share} has no effect with train.head = frozen: "
            "no round trains the head. Set it to null, or set train.head=private."
        )
    if train.head_init == "zero_shot":
        _check_zero_shot(model, data)
    elif train.head_init == "checkpoint" and not reads_stock_features(model):
        raise ConfigError(
            f"train.head_init = checkpoint is not possible with model.pooling = {model.pooling}, model.pooling_layer = "
            f"{model.pooling_layer} and model.standardize = {model.standardize}: the checkpoint's head reads the "
            "features of its own class. Set pooling to auto or stock, pooling_layer to last and standardize to none, "
            "or set train.head_init=random."
        )


def reads_stock_features(model: ModelConfig) -> bool:
    """Return whether a classifier may read the features that the architecture's own class reads."""
    return model.pooling in ("auto", "stock") and model.pooling_layer == "last" and model.standardize == "none"


def _check_no_head(train: TrainConfig, privacy: PrivacyConfig) -> None:
    settings = {
        f"train.trains = {train.trains}": train.trains == "head",
        f"train.head_rounds = {train.head_rounds}": train.head_rounds > 0,
        f"train.head_init = {train.head_init}": train.head_init not in ("auto", "random"),
        f"train.head_learning_rate = {train.head_learning_rate}": train.head_learning_rate is not None,
        f"privacy.head_clipping_share = {privacy.head_clipping_share}": (
            privacy.name == "dp_sgd" and privacy.head_clipping_share is not None
        ),
    }
    for setting, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{setting} is not possible with model.task = causal_lm, which has no classification head: leave it "
                "out, or set model.task=sequence_classification."
            )


def _check_zero_shot(model: ModelConfig, data: DataConfig) -> None:
    if model.task not in ONE_PREDICTION_TASKS:
        raise ConfigError(
            f"train.head_init = zero_shot is not possible with model.task = {model.task}: it separates classes that "
            "exclude each other. Set train.head_init=random or zeros."
        )
    if model.task == "regression" and data.label_range is None:
        raise ConfigError(
            "train.head_init = zero_shot needs data.label_range with model.task = regression: data.class_descriptions "
            "describes its ends. Set it to [lowest, highest], or set train.head_init=random or zeros."
        )
    if data.class_descriptions is None:
        raise ConfigError(
            f"train.head_init = zero_shot needs data.class_descriptions, which data={data.name} leaves empty: give a "
            "list of invented sentences for each class (with model.task=regression, for the lowest and the highest "
            "label), or set train.head_init=random."
        )
    if model.head != "linear":
        raise ConfigError(
            f"train.head_init = zero_shot is not possible with model.head = {model.head}: it initializes one linear "
            "layer. Set train.head_init=random, or model.head=linear."
        )
    if model.pooling == "stock":
        raise ConfigError(
            "train.head_init = zero_shot is not possible with model.pooling = stock, whose head is more than one layer "
            "on pooled features: set model.pooling=mean, or train.head_init=random."
        )
