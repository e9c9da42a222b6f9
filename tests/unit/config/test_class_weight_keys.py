"""Class weights that have no effect, or would be computed from private labels."""

import re

import pytest
from omegaconf import OmegaConf

from fedsvd.config.compose import compose, from_dictconfig, to_yaml
from fedsvd.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.class_weights=[1,0]", "train.class_weights = [1, 0] is invalid: expected balanced, or a number > 0"),
        ("train.class_weights=even", "train.class_weights = 'even' is invalid"),
        ("train.label_counts=[9,0.5]", "an integer ≥ 1 for each class"),
        ("train.label_counts=[9,1]", "train.label_counts = [9, 1] has no effect with train.class_weights = null"),
        ("train.class_weights=[1,2] train.label_counts=[9,1]", "has no effect with train.class_weights = [1.0, 2.0]"),
        ("model=tiny_llama train.class_weights=[1,2]", "is not possible with model.task = causal_lm"),
        (
            "data=node data.labels=[a,b] federation=remote train.class_weights=balanced",
            "the numbers of the nodes' labels are private. Give public numbers",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(overrides)


def test_classes_that_are_numbers_or_booleans_have_names() -> None:
    numbers = compose(["train.class_weights={0:1,-1:2.5}"]).train.class_weights
    listed = compose(["federation=remote", "data=node", "data.labels=[0,1,true]"]).data.labels
    booleans = compose(["train.class_weights=balanced", "train.label_counts={true:1,false:2}"]).train.label_counts

    assert numbers == {"0": 1, "-1": 2.5}
    assert listed == ("0", "1", "true")
    assert booleans == {"true": 1, "false": 2}


@pytest.mark.parametrize("weights", ["[1,2.5]", "{neg:1,pos:2.5}", "{0:1,1:2.5}"])
def test_weights_survive_the_run_directory(weights: str) -> None:
    config = compose(["experiment=smoke", f"train.class_weights={weights}"])
    again = from_dictconfig(OmegaConf.create(to_yaml(config)))

    assert again == config
    assert hash(again.train) == hash(config.train)
