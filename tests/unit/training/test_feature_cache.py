"""The caches of a run whose head is trained before its factors."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.lora import peft_model
from fedsvd.methods import build_run_method
from fedsvd.runtime import losses
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.training.feature_cache import FeatureCache

RUN = ["experiment=smoke", "train.head=private", "model.pooling=mean", "model.lora_layers=top_1", "train.num_rounds=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "states"),
    [(["train.head_rounds=1"], 4), (["train.head_rounds=2"], 0), (["train.trains=head"], 0), ([], 0)],
    ids=str,
)
def test_the_states_below_are_cached_with_the_features_if_factors_follow(overrides: list[str], states: int) -> None:
    losses.clear_caches()
    config = compose([*RUN, *overrides])
    model, cache = load_model(config), losses.load_prefix_cache(config)
    peft_model.write(model, initial_adapter(config, build_run_method(config)))
    peft_model.set_trainable(model, ["head"])
    client_losses = losses.per_example_losses(load_client_data(config, 0), config)

    expected = client_losses(model, [0, 1, 2, 3])
    assert isinstance(cache, FeatureCache)
    assert len(cache._store) == 4
    assert len(cache._prefix) == states
    assert client_losses(model, [0, 1, 2, 3]).tolist() == expected.tolist()


def test_batches_of_all_examples_are_padded_once() -> None:
    losses.clear_caches()
    config = compose(RUN)
    data = load_client_data(config, 0)
    tokenizer = losses.load_tokenizer(config)

    first = losses._collate_cached(data, tokenizer, None, (2, 3, 4))
    assert losses._collate_cached(data, tokenizer, None, (2, 3, 4)) is first
    again = losses._collate(data, tokenizer, None, (2, 4))
    assert again["labels"].tolist() == [first["labels"][0], first["labels"][2]]
