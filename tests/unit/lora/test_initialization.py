"""Tests of the initialization of LoRA factors."""

import peft
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedsvd.errors import ConfigError
from fedsvd.lora import peft_model
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.initialization import initialize_factors


def make_model() -> peft.PeftModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return peft_model.attach(
        BertForSequenceClassification(config), rank=4, lora_alpha=8, target_modules=["query", "value"]
    )


def test_initialization_depends_only_on_the_seed() -> None:
    shapes = peft_model.read(make_model())
    first, same_seed, other_seed = (
        initialize_factors(shapes, init_a="orthonormal", init_b="zeros", seed=seed) for seed in (1, 1, 2)
    )

    for name in shapes.A:
        assert torch.equal(first.A[name], same_seed.A[name])
        assert not torch.equal(first.A[name], other_seed.A[name])
        torch.testing.assert_close(first.A[name] @ first.A[name].mT, torch.eye(4))
        assert not first.B[name].any()
    assert not torch.equal(first.A[next(iter(shapes.A))], list(first.A.values())[1])


def test_kaiming_stays_within_its_bound() -> None:
    shapes = peft_model.read(make_model())
    adapter = initialize_factors(shapes, init_a="kaiming", init_b="orthonormal", seed=0)

    for name in shapes.A:
        assert 0.15 < adapter.A[name].abs().max() <= 1 / 4
        torch.testing.assert_close(adapter.B[name].mT @ adapter.B[name], torch.eye(4))


def test_unknown_initialization_raises() -> None:
    with pytest.raises(ConfigError, match="kaiming, orthonormal"):
        initialize_factors(peft_model.read(make_model()), init_a="xavier", init_b="zeros", seed=0)


def test_weight_svd_uses_the_top_singular_vectors_of_the_frozen_weight() -> None:
    model = make_model()
    weights = frozen_weights(model)
    adapter = initialize_factors(peft_model.read(model), init_a="weight_svd", init_b="zeros", seed=0, weights=weights)

    for name, A in adapter.A.items():
        torch.testing.assert_close(A @ A.mT, torch.eye(4))
        amplified = (weights[name] @ A.mT).norm(dim=0)
        torch.testing.assert_close(amplified, torch.linalg.svdvals(weights[name])[:4])
        # The signs do not depend on the linear algebra library.
        assert (A.gather(1, A.abs().argmax(1, keepdim=True)) > 0).all()
