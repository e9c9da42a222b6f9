"""Exports of classifiers on pooled features: stock classes and sentence-transformers models with the same logits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
)

from fedsvd.config import ModelConfig
from fedsvd.models.embedded import quiet_transformers
from fedsvd.models.loading import load_tokenizer
from fedsvd.models.pooled import PooledClassifier, Pooling
from fedsvd.models.pooled_loading import load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.standardization import Standardization, half_whitening
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.trained.sentence_export import save_sentence_transformer
from fedsvd.trained.stock_export import adapter_state, to_stock

TEXTS = ["A fine film with a lovely cast.", "Bad.", "It is what it is, and nothing more than that, or so they say."]


def standardization(width: int) -> Standardization:
    rows = torch.randn(200, width, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.5
    return half_whitening(rows, {"name": "made up", "sha256": "0", "num_texts": "200"})


def embedded(source: str, pooling: Pooling, layer: int | None = None, public: bool = True) -> PooledClassifier:
    settings = ModelConfig("own", source, pooling="mean")
    public_statistics = standardization(32) if public else None
    return with_large_head(load_pooled(settings, PoolingChoice(pooling, layer, False, ""), 3, 0, public_statistics))


def with_large_head(model: PooledClassifier) -> PooledClassifier:
    model.classifier.weight.data *= 50
    model.classifier.bias.data += torch.arange(model.classifier.out_features)
    return model.eval()


def other(backbone: PreTrainedModel) -> PooledClassifier:
    return with_large_head(PooledClassifier(backbone, "mean", 3, 0, standardization(backbone.config.hidden_size)))


def distilbert() -> PooledClassifier:
    torch.manual_seed(0)
    return other(DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48)))


def mpnet() -> PooledClassifier:
    torch.manual_seed(0)
    sizes = MPNetConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    return other(MPNetModel(sizes, add_pooling_layer=False))


def batch(source: str = "embedded:tiny") -> dict[str, Tensor]:
    found = load_tokenizer(source)(TEXTS, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("source", ["embedded:tiny", "embedded:tiny-roberta"])
@pytest.mark.parametrize(("pooling", "layer", "public"), [("mean", None, True), ("mean", 1, False), ("first", 1, True)])
@torch.no_grad()
def test_the_stock_class_computes_the_same_logits(
    source: str, pooling: Pooling, layer: int | None, public: bool, tmp_path: Path
) -> None:
    model = embedded(source, pooling, layer, public)
    expected = model(**batch()).logits
    stock = to_stock(model, load_tokenizer(source))
    assert stock is not None
    assert stock.config.num_hidden_layers == model.config.num_hidden_layers + 1

    with quiet_transformers():
        stock.save_pretrained(tmp_path)
        for attention in ("eager", "sdpa"):
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=attention).eval()
            torch.testing.assert_close(loaded(**batch()).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("source", ["embedded:tiny", "embedded:tiny-roberta"])
@torch.no_grad()
def test_the_standardized_first_token_has_a_stock_class(source: str) -> None:
    # The first token's states differ little between texts, so that those of any other token are far from all data.
    choice, public = PoolingChoice("first", None, False, ""), load_public_corpus("embedded:bbc_news")
    model = with_large_head(load_pooled(ModelConfig("own", source, pooling="first"), choice, 3, 0, public))
    stock = to_stock(model, load_tokenizer(source))

    assert stock is not None
    torch.testing.assert_close(stock(**batch(source)).logits, model(**batch(source)).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [distilbert, mpnet, lambda: embedded("embedded:tiny", "last")])
def test_an_architecture_without_a_fitting_stock_class_has_none(make: object) -> None:
    assert to_stock(make(), load_tokenizer("embedded:tiny")) is None  # type: ignore[operator]


@torch.no_grad()
def test_a_stock_class_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvd.trained.stock_export._MEAN_SCALE", 1.0)

    assert to_stock(embedded("embedded:tiny", "mean"), load_tokenizer("embedded:tiny")) is None


@torch.no_grad()
def test_an_adapters_head_is_rescaled_for_the_stock_class() -> None:
    for source in ("embedded:tiny", "embedded:tiny-roberta"):
        model = embedded(source, "mean")
        stock = to_stock(model, load_tokenizer(source))
        assert stock is not None
        model.classifier.weight.data.mul_(-2).add_(0.1)
        state = {
            f"base_model.model.classifier.{name}": tensor for name, tensor in model.classifier.state_dict().items()
        }
        renamed = adapter_state(state, model, stock)

        stock.load_state_dict({name.removeprefix("base_model.model."): t for name, t in renamed.items()}, strict=False)
        torch.testing.assert_close(stock(**batch()).logits, model(**batch()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        distilbert,
        mpnet,
        lambda: embedded("embedded:tiny", "mean", public=False),
        lambda: embedded("embedded:tiny", "last", 1),
        lambda: embedded("embedded:tiny-llama", "last"),
    ],
)
@torch.no_grad()
def test_encode_of_a_sentence_transformers_model_returns_the_logits(make: object, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = make()  # type: ignore[operator]
    with quiet_transformers():
        save_sentence_transformer(model, tmp_path, 24)
        load_tokenizer("embedded:tiny").save_pretrained(tmp_path)
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")

    assert loaded.max_seq_length == 24
    found = loaded.encode([*TEXTS, " ".join(TEXTS * 3)], convert_to_tensor=True)
    torch.testing.assert_close(found[:3], model(**batch()).logits, atol=1e-3, rtol=1e-3)
