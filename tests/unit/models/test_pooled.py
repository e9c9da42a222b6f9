"""Classifiers on pooled features: padding, per-example gradients, and caches of frozen layers."""

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    MPNetModel,
)

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.models.loading import checkpoint_activations
from fedsvd.models.pooled import PooledClassifier, Pooling
from fedsvd.models.standardization import FEATURE_NORM, Standardization, half_whitening
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.feature_cache import FeatureCache, FeatureStore
from fedsvd.training.per_example_gradients import fused_gradients, unsupported_reason
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

BACKBONES = {
    "bert": lambda: BertModel(
        BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0,
                         attention_dropout=0.0)
    ),
    "llama": lambda: LlamaModel(
        LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=24, use_cache=False)
    ),
    "mpnet": lambda: MPNetModel(
        MPNetConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    ),
}  # fmt: skip
CASES: list[tuple[str, Pooling]] = [
    ("bert", "mean"), ("bert", "first"), ("distilbert", "mean"), ("mpnet", "mean"), ("llama", "last")
]  # fmt: skip
# Four texts, of lengths 6, 4, 2 and 6; the first and the last are the same.
IDS = torch.tensor([[2, 9, 8, 7, 6, 5], [3, 11, 12, 13, 0, 0], [4, 17, 0, 0, 0, 0], [2, 9, 8, 7, 6, 5]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
LABELS = torch.tensor([0, 1, 2, 0])
CORPUS = {"name": "made up", "sha256": "0", "num_texts": "50"}


def standardization() -> Standardization:
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 17) + 3
    return half_whitening(rows, CORPUS)


def classifier(kind: str, pooling: Pooling, *, public: bool = True) -> PooledClassifier:
    torch.manual_seed(0)
    model = PooledClassifier(BACKBONES[kind](), pooling, 3, 0, standardization() if public else None)
    # Larger than it starts, so that gradients pass through it.
    model.classifier.weight.data *= 50
    return model.eval()


def adapted(
    model: PooledClassifier, *parts: str, targets: str = "auto", layers: str = "top_1", init_b: str = "kaiming"
) -> peft.PeftModel:
    wrapped = peft_model.attach(
        model, rank=4, lora_alpha=16, target_modules=targets, lora_layers=layers, head_modules=["classifier"]
    )
    factors = initialize_factors(peft_model.read(wrapped), init_a="orthonormal", init_b=init_b, seed=0)
    peft_model.write(wrapped, factors)
    peft_model.set_trainable(wrapped, parts)  # type: ignore[arg-type]
    return wrapped.eval()


def rows(positions: object) -> dict[str, Tensor]:
    index = torch.as_tensor(positions)
    length = int(INPUTS["attention_mask"][index].sum(1).max())
    return {name: tensor[index, :length] for name, tensor in INPUTS.items()}


def losses(model: nn.Module, positions: object) -> Tensor:
    logits = model(**rows(positions)).logits
    return nn.functional.cross_entropy(logits.float(), LABELS[torch.as_tensor(positions)], reduction="none")


def features_cache(model: peft.PeftModel) -> FeatureCache:
    budget = MemoryBudget(2**20)
    return FeatureCache(model, model.get_base_model(), PrefixCache(model, StateStore(budget)), FeatureStore(budget))


@pytest.mark.parametrize(("kind", "pooling"), CASES)
@pytest.mark.parametrize("public", [True, False], ids=["public", "none"])
@torch.no_grad()
def test_padding_changes_nothing(kind: str, pooling: Pooling, public: bool) -> None:
    model = classifier(kind, pooling, public=public)
    batch = model(**INPUTS).logits

    for position in range(4):
        torch.testing.assert_close(batch[position], model(**rows([position])).logits[0], atol=1e-4, rtol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_features_have_the_same_norm_with_and_without_standardization() -> None:
    plain = classifier("bert", "mean", public=False)

    norms = plain.features(**INPUTS).norm(dim=1)

    torch.testing.assert_close(norms, torch.full((4,), FEATURE_NORM), atol=1e-3, rtol=0)


@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_per_example_gradients_equal_a_loop(kind: str, pooling: Pooling, per_example: GradSampleMode) -> None:
    model = adapted(classifier(kind, pooling), "A", "B", "head", layers="all")

    assert unsupported_reason(model) is None
    check_against_loop(model, per_example)


def check_against_loop(model: peft.PeftModel, per_example: GradSampleMode, tolerance: float = 1e-4) -> None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = per_example_gradients(model, losses, range(4), per_example)
    assert found.keys() == trained.keys()
    for position in range(4):
        expected = torch.autograd.grad(losses(model, [position]).sum(), list(trained.values()))
        for name, gradient in zip(trained, expected, strict=True):
            scale = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(found[name][position], gradient, atol=tolerance * scale, rtol=tolerance)
    assert any(gradient.abs().max() > 1e-3 for gradient in found.values())


def test_bfloat16_backbones_have_float32_features_and_heads() -> None:
    model = classifier("bert", "mean")
    model.backbone.to(torch.bfloat16)
    wrapped = adapted(model, "A", "B", "head")

    assert {parameter.dtype for parameter in wrapped.parameters() if parameter.requires_grad} == {torch.float32}
    assert model.features(**INPUTS).dtype == torch.float32
    assert unsupported_reason(wrapped) is None
    check_against_loop(wrapped, fused_gradients, tolerance=0.1)


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_cached_lower_layers_and_checkpointing_give_the_same_gradients(
    kind: str, pooling: Pooling, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(classifier(kind, pooling), "B", "head")
    expected = per_example_gradients(model, losses, range(4), fused_gradients)
    cache = features_cache(model)
    if kind != "mpnet":  # transformers has no checkpointing for it
        checkpoint_activations(model.get_base_model())

    def cached_losses(module: nn.Module, positions: object) -> Tensor:
        with cache.reuse_states(module, rows(positions)):
            return losses(module, positions)

    for _ in range(2):
        found = per_example_gradients(model, cached_losses, range(4), fused_gradients)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Two of the four texts are the same.
    assert len(cache) == 3
    assert not [record for record in caplog.records if record.name.startswith("fedsvd")]


@pytest.mark.parametrize("init_b", ["zeros", "kaiming"])
@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
def test_a_run_that_trains_the_head_alone_computes_each_text_once(init_b: str, per_example: GradSampleMode) -> None:
    model = adapted(classifier("bert", "mean"), "head", init_b=init_b)
    expected = per_example_gradients(model, losses, range(4), per_example)
    cache, calls = features_cache(model), []
    model.get_base_model().backbone.register_forward_hook(lambda *_: calls.append(1))

    def cached_losses(module: nn.Module, positions: object) -> Tensor:
        with cache.reuse_states(module, rows(positions)):
            return losses(module, positions)

    for _ in range(3):
        found = per_example_gradients(model, cached_losses, range(4), per_example)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1
    assert len(cache) == 3


@torch.no_grad()
def test_cached_features_follow_the_factors() -> None:
    model = adapted(classifier("bert", "mean"), "head")
    cache = features_cache(model)

    def cached_logits() -> Tensor:
        with cache.reuse_states(model, INPUTS):
            logits: Tensor = model(**INPUTS).logits
        return logits

    before = cached_logits()
    adapter = peft_model.read(model)
    peft_model.write(model, adapter.with_parts({"B": {name: 2 * B for name, B in adapter.B.items()}}))
    after = cached_logits()
    torch.testing.assert_close(after, model(**INPUTS).logits)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(cached_logits(), model(**INPUTS).logits)
    torch.testing.assert_close(cached_logits(), after)


def test_features_that_do_not_fit_are_computed_again() -> None:
    model = adapted(classifier("bert", "mean"), "head")
    budget = MemoryBudget(16 * 4)
    cache = FeatureCache(model, model.get_base_model(), PrefixCache(model, StateStore(budget)), FeatureStore(budget))

    for _ in range(2):
        with cache.reuse_states(model, INPUTS):
            cached = model(**INPUTS).logits
        torch.testing.assert_close(cached, model(**INPUTS).logits)
    assert len(cache) == 1


def test_features_of_texts_that_are_padded_on_the_left_are_not_cached() -> None:
    model = adapted(classifier("bert", "mean"), "head")
    cache, left = features_cache(model), {name: tensor.flip(1) for name, tensor in INPUTS.items()}
    # The same tokens in the same order, at other positions.
    left["input_ids"] = torch.stack([torch.cat([row[row == 0], row[row != 0]]) for row in IDS])

    for inputs in (left, INPUTS, left):
        with cache.reuse_states(model, inputs):
            cached = model(**inputs).logits
        torch.testing.assert_close(cached, model(**inputs).logits)
    assert len(cache) == 3
