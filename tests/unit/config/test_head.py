"""Settings of the head that contradict each other, and sampling."""

import re

import pytest
from omegaconf import OmegaConf

from fedsvd.config.compose import compose, from_dictconfig, to_yaml
from fedsvd.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.head=frozen train.trains=head", "train.trains = head is not possible with train.head = frozen"),
        ("train.head=frozen train.head_rounds=2", "train.head_rounds = 2 is not possible with train.head = frozen"),
        ("train.head=frozen train.head_learning_rate=1", "train.head_learning_rate = 1.0 is not possible"),
        ("train.trains=factors train.head_learning_rate=1", "train.head_learning_rate = 1.0 has no effect with"),
        (
            "privacy=dp_sgd train.head=frozen privacy.head_clipping_share=0.5",
            "privacy.head_clipping_share = 0.5 has no effect with train.head = frozen",
        ),
        ("model=tiny_llama train.trains=head", "train.trains = head is not possible with model.task = causal_lm"),
        ("model=tiny_llama train.head_rounds=1", "has no classification head"),
        ("model=tiny_llama train.head_init=zeros", "train.head_init = zeros is not possible"),
        ("model=tiny_llama privacy.head_clipping_share=0.5", "privacy.head_clipping_share = 0.5 is not possible"),
        ("data=csv data.path=x.csv train.head_init=zero_shot", "needs data.class_descriptions, which data=csv leaves"),
        ("model.pooling=stock train.head_init=zero_shot", "is not possible with model.pooling = stock"),
        ("privacy=client_level privacy.head_clipping_share=0.5", "bounds the norm of a client's whole update"),
        ("privacy.head_clipping_share=1", "privacy.head_clipping_share = 1"),
        ("train.sample_rate=0", "train.sample_rate = 0 is invalid: expected a number > 0 and ≤ 1"),
        ("train.sample_rate=1.1", "train.sample_rate = 1.1 is invalid"),
        ("train.sample_rate=0.5 train.batch_size=100", "train.batch_size and train.sample_rate"),
        ("data.class_descriptions=[1]", "a list of sentences for each class"),
    ],
)
def test_contradictions_name_both_settings(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(overrides)


def test_a_sample_rate_replaces_a_batch_size_that_was_not_given() -> None:
    assert compose("train.sample_rate=1.0").train.sample_rate == 1.0
    assert compose("experiment=causal_lm train.sample_rate=1.0").train.batch_size == 150
    assert compose("train.sample_rate=null train.batch_size=7").train.batch_size == 7
    # With shared noise, the batch size is the common divisor.
    shared = compose("experiment=shared_noise train.sample_rate=0.5 train.batch_size=300")
    assert (shared.train.batch_size, shared.train.sample_rate) == (300, 0.5)


def test_settings_of_the_head_are_accepted_where_they_contradict_nothing() -> None:
    later = "train.trains=factors train.head_rounds=1 train.head_learning_rate=1"
    assert compose(later).train.head_learning_rate == 1.0
    # Without privacy, nothing is clipped per example, whatever the group privacy says.
    unused = "privacy=none train.head=frozen privacy.head_clipping_share=0.5"
    assert compose(unused).privacy.head_clipping_share == 0.5


def test_shared_noise_needs_one_rate_or_one_noise_multiplier() -> None:
    assert compose("experiment=shared_noise").privacy.noise_multiplier is None
    with pytest.raises(ConfigError, match=r"Set train\.sample_rate, or set privacy\.noise_multiplier"):
        compose("experiment=shared_noise train.sample_rate=null")


@pytest.mark.parametrize("descriptions", ["[['no'],['yes','oh yes']]", "{neg:['no'],pos:['yes','oh yes']}"])
def test_descriptions_survive_the_run_directory(descriptions: str) -> None:
    config = compose(["data=csv", "data.path=x.csv", f"data.class_descriptions={descriptions}"])
    again = from_dictconfig(OmegaConf.create(to_yaml(config)))
    assert again == config
    assert hash(again.data) == hash(config.data)
