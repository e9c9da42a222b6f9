"""Loading of classifiers on pooled features, and of their public statistics."""

import shutil
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedModel

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.models import pooled_loading
from fedsvd.models.embedded import resolve_source
from fedsvd.models.loading import load_tokenizer
from fedsvd.models.pooled_loading import PublicText, load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.standardization import half_whitening

CORPUS = {"name": "made up", "sha256": "0", "num_texts": "50"}


def model_config(source: str, **settings: object) -> ModelConfig:
    return ModelConfig("own", source, pooling="auto", **settings)  # type: ignore[arg-type]


def public_text(count: int = 120) -> PublicText:
    words = ["market", "film", "match", "phone", "party", "film", "goal"]
    texts = [" ".join(words[(i * j) % 7] for j in range(1, 3 + i % 5)) + f" {i}" for i in range(count)]
    return PublicText(tuple(texts), {**CORPUS, "num_texts": str(count)})


def test_layers_above_the_pooled_one_are_not_loaded() -> None:
    choice = PoolingChoice("mean", 1, False, "as configured")
    model = load_pooled(model_config("embedded:tiny", pooling_layer=1), choice, 3, 0)
    whole = load_pooled(model_config("embedded:tiny"), PoolingChoice("mean", None, False, ""), 3, 0)

    assert len(model.backbone.encoder.layer) == 1
    assert model.backbone.pooler is None
    ids = torch.arange(100, 110)[None]
    states = whole.backbone(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.backbone(input_ids=ids).last_hidden_state, states[1])


def test_the_seed_decides_the_head_alone() -> None:
    choice = PoolingChoice("mean", None, False, "as configured")
    one, same, other = (load_pooled(model_config("embedded:tiny"), choice, 2, seed) for seed in (0, 0, 1))

    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert not one.classifier.bias.any()


def test_statistics_are_computed_once_and_are_those_of_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvd.models.pooled_loading.cache_folder", lambda: tmp_path)
    settings, choice = model_config("embedded:tiny", standardize="public"), PoolingChoice("mean", None, False, "")
    public = public_text()
    model = load_pooled(settings, choice, 2, 0, public)

    folders = list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(pooled_loading, "_pool_texts", None)
        again = load_pooled(settings, choice, 3, 5, public)
    assert list(tmp_path.iterdir()) == folders
    assert len(folders) == 1
    assert again.standardization is not None
    assert model.standardization is not None
    assert torch.equal(again.standardization.matrix, model.standardization.matrix)
    load_pooled(settings, PoolingChoice("first", None, False, ""), 2, 0, public)
    load_pooled(model_config("embedded:tiny", standardize="public", max_length=3), choice, 2, 0, public)
    load_pooled(settings, choice, 2, 0, PublicText(public.texts[:50], {**CORPUS, "sha256": "1"}))
    assert len(list(tmp_path.iterdir())) == 4


def test_statistics_are_those_of_single_texts_and_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_loading, "cache_folder", lambda: tmp_path / "cache")
    settings, choice = model_config("embedded:tiny", standardize="public"), PoolingChoice("mean", None, False, "")
    public = public_text(24)
    model = load_pooled(settings, choice, 2, 0, public)
    tokenizer = load_tokenizer("embedded:tiny")
    with torch.inference_mode():
        states = [model.pooled_states(**tokenizer(text, return_tensors="pt")) for text in public.texts]
    expected = half_whitening(torch.cat(states), public.corpus)
    assert model.standardization is not None
    torch.testing.assert_close(model.standardization.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.standardization.matrix, expected.matrix, rtol=1e-4, atol=1e-5)

    changed = shutil.copytree(resolve_source("embedded:tiny"), tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    [name] = [name for name in weights if name.endswith("layer.1.output.LayerNorm.weight")]
    weights[name][0] *= 3
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    other = load_pooled(replace(settings, source=str(changed)), choice, 2, 0, public).standardization
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert other is not None
    assert not torch.allclose(other.matrix, expected.matrix, rtol=1e-2)


def test_an_incomplete_checkpoint_is_rejected(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=60, **sizes), add_pooling_layer=False)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layer.1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks parameters of BertModel: .*layer\.1"):
        load_pooled(model_config(str(tmp_path)), PoolingChoice("mean", None, False, ""), 2, 0)


def distribute_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let accelerate place the layers of each backbone, as on several GPUs, so that nothing may move them."""
    load = pooled_loading._load_backbone

    def refuse(*_: object) -> None:
        raise AssertionError("a distributed backbone was moved")

    def load_distributed(config: ModelConfig, layer: int | None, device: str) -> PreTrainedModel:
        backbone = load(replace(config, device_map="none"), layer, device)
        layers = ["embeddings", *(f"encoder.layer.{number}" for number in range(len(backbone.encoder.layer)))]
        accelerate.dispatch_model(backbone, dict.fromkeys(layers, "cpu"), main_device="cpu", force_hooks=True)
        backbone._apply = refuse
        return backbone

    monkeypatch.setattr(pooled_loading, "_load_backbone", load_distributed)


def test_statistics_do_not_move_a_distributed_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, choice = {"standardize": "public"}, PoolingChoice("mean", None, False, "")
    ids = torch.arange(100, 110)[None]
    monkeypatch.setattr(pooled_loading, "cache_folder", lambda: tmp_path / "plain")
    plain = load_pooled(model_config("embedded:tiny", **settings), choice, 2, 0, public_text())
    distribute_backbones(monkeypatch)
    monkeypatch.setattr(pooled_loading, "cache_folder", lambda: tmp_path / "distributed")

    distributed = load_pooled(model_config("embedded:tiny", device_map="auto", **settings), choice, 2, 0, public_text())

    torch.testing.assert_close(distributed(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_the_head_of_a_distributed_backbone_is_where_its_output_is(monkeypatch: pytest.MonkeyPatch) -> None:
    distribute_backbones(monkeypatch)
    settings, choice = model_config("embedded:tiny", device_map="auto"), PoolingChoice("mean", None, False, "")
    standardization = half_whitening(torch.randn(50, 128), CORPUS)

    # In place of a GPU, a device without numbers.
    model = load_pooled(settings, choice, 2, 0, standardization, device="meta")

    head = {"classifier.weight", "classifier.bias", "mean", "matrix"}
    assert {name for name, tensor in model.state_dict().items() if tensor.device.type == "meta"} == head
    adapted = peft_model.attach(
        model, rank=2, lora_alpha=2, target_modules="auto", lora_layers="top_1", head_modules=["classifier"]
    )
    copies = {tensor.device.type for name, tensor in adapted.named_parameters() if "classifier" in name}
    assert copies == {"meta"}
