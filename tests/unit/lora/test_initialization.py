"""Tests of the initialization of LoRA factors."""

import peft
import pytest
import scipy.fft
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedsvd.errors import ConfigError
from fedsvd.lora import peft_model
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.initialization import dct_indices, dct_rows, initialize_factors


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
    shapes = peft_model.read(make_model())
    with pytest.raises(ConfigError, match=r"method\.init_a = 'xavier' .*public_pca"):
        initialize_factors(shapes, init_a="xavier", init_b="zeros", seed=0)
    with pytest.raises(ConfigError, match=r"method\.init_b = 'xavier' .*kaiming, orthonormal, weight_svd, zeros"):
        initialize_factors(shapes, init_a="kaiming", init_b="xavier", seed=0)


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


def test_a_drawn_b_depends_only_on_the_seed() -> None:
    shapes = peft_model.read(make_model())
    first, again = (initialize_factors(shapes, init_a="kaiming", init_b="orthonormal", seed=3) for _ in range(2))
    assert all(torch.equal(first.B[name], again.B[name]) for name in shapes.B)


def test_dct_rows_are_the_orthonormal_dct_ii() -> None:
    indices = torch.tensor([0, 1, 4])
    expected = torch.from_numpy(scipy.fft.dct(torch.eye(6, dtype=torch.float64).numpy(), axis=0, norm="ortho"))
    torch.testing.assert_close(dct_rows(indices, torch.zeros(3, 6, dtype=torch.float64)), expected[indices])


def test_dct_takes_the_frequencies_that_carry_most_of_the_frozen_weight() -> None:
    basis = dct_rows(torch.arange(6), torch.zeros(6, 6, dtype=torch.float64))
    weight = torch.diag(torch.tensor([1.0, 5.0, 0.5, 0.1, 4.0, 2.0], dtype=torch.float64)) @ basis
    assert dct_indices(weight, 3).tolist() == [1, 4, 5]

    model = make_model()
    weights = frozen_weights(model)
    adapter = initialize_factors(peft_model.read(model), init_a="dct", init_b="zeros", seed=0, weights=weights)
    for name, A in adapter.A.items():
        torch.testing.assert_close(A, dct_rows(dct_indices(weights[name], 4), A))


def test_public_rows_are_taken_in_the_dtype_of_a() -> None:
    shapes = peft_model.read(make_model())
    rows = {name: torch.randn(A.shape, dtype=torch.float64) for name, A in shapes.A.items()}
    adapter = initialize_factors(shapes, init_a="public_pca", init_b="zeros", seed=0, public_rows=rows)

    for name, A in adapter.A.items():
        assert A.dtype is torch.float32
        assert torch.equal(A, rows[name].float())
