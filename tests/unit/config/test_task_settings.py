"""Settings that do not fit the labels of a task."""

import re
from typing import get_args, get_type_hints

import pytest

from fedsvd.config import ModelConfig
from fedsvd.config.compose import compose
from fedsvd.config.task import PLAIN_TEXT, TASKS
from fedsvd.errors import ConfigError

OWN = "model=tiny data=csv data.path=x.csv partition=iid"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data=bbc_news model.task=regression", "data = bbc_news is not possible with model.task = regression"),
        (f"{OWN} model.task=regression partition=dirichlet", "partition.name = dirichlet is not possible"),
        (
            f"{OWN} model.task=regression partition=by_column partition.column=label",
            "partition.column = label is not possible with model.task = regression",
        ),
        (f"{OWN} data.label_range=[0,1]", "data.label_range = [0.0, 1.0] has no effect"),
        (f"{OWN} model.task=regression data.label_range=[1,1]", "two numbers, the smaller one first"),
        (f"{OWN} model.task=regression data.label_separator='|'", "data.label_separator = '|' has no effect"),
        (f"{OWN} model.task=regression data.response_column=x", "data.response_column = x has no effect"),
        (
            f"{OWN} model.task=multi_label_classification train.head_init=zero_shot",
            "train.head_init = zero_shot is not possible with model.task = multi_label_classification",
        ),
        (f"{OWN} model.task=token_classification", "data = csv is not possible with model.task = token_classification"),
        (
            f"{OWN} model.task=token_classification data=jsonl model.pooling=mean",
            "model.pooling = mean is not possible with model.task = token_classification, which reads every token",
        ),
        (
            f"{OWN} model.task=token_classification data=jsonl data.text_pair_column=b",
            "data.text_pair_column = b has no effect with model.task = token_classification",
        ),
        (
            f"{OWN} model.task=multi_label_classification privacy.project_public_mean=true",
            "privacy.project_public_mean = True is not possible with model.task = multi_label_classification",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(overrides)


def test_nodes_have_no_partition_and_every_task_has_a_row() -> None:
    assert compose("model=tiny data=node model.task=regression").partition.name == "dirichlet"
    assert {*get_args(get_type_hints(ModelConfig)["task"]), PLAIN_TEXT} == set(TASKS)
