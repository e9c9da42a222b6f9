"""Heads of regressions: trained on 0 … 1, exported in the original units, and back."""

from pathlib import Path

import peft
import pytest
import torch
from families import save_checkpoint
from safetensors.torch import load_file, save_file
from small_bert import make_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.models.checkpoint_head import KeptHead
from fedsvd.models.head_choice import choose_head
from fedsvd.models.label_range import rescale_head, rescale_state, unscale_head
from fedsvd.models.loading import load_base, load_tokenizer
from fedsvd.models.output_layer import check_output_bias, output_layer
from fedsvd.models.pooled_loading import load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.trained.stock_export import to_stock

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
RANGE = (-1.0, 4.0)


@torch.no_grad()
def predictions(model: nn.Module) -> Tensor:
    values: Tensor = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return values


def test_an_adapters_head_predicts_in_the_original_units(tmp_path: Path) -> None:
    trained, _ = make_model({"B", "head"}, num_labels=1)
    before = predictions(trained)
    peft_model.save_pretrained(trained, peft_model.read(trained), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    base = make_model({"B"}, num_labels=1)[0].unload()
    save_file(rescale_state(load_file(path), base, RANGE), path, metadata={"format": "pt"})

    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path))

    torch.testing.assert_close(predictions(loaded), 5 * before - 1)


def test_a_pooled_head_predicts_in_the_original_units_as_a_stock_class() -> None:
    settings = ModelConfig("own", "embedded:tiny", pooling="mean")
    model = load_pooled(settings, PoolingChoice("mean", None, False, ""), 1, 0)
    before = predictions(model)
    rescale_head(model, RANGE)
    stock = to_stock(model, load_tokenizer("embedded:tiny"))

    assert stock is not None
    torch.testing.assert_close(predictions(stock), 5 * before - 1, atol=1e-3, rtol=1e-3)


def test_a_head_without_bias_needs_a_range_from_zero() -> None:
    sizes = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    sizes.num_labels = 1
    adapted = peft_model.attach(LlamaForSequenceClassification(sizes), rank=1, lora_alpha=1, target_modules=["q_proj"])

    assert ".score." in output_layer(adapted)
    check_output_bias(adapted, "llama", (0.0, 5.0))
    with pytest.raises(
        ModelError, match=r"data.label_range = \[1.0, 5.0\] is not possible with the stock head of llama"
    ):
        check_output_bias(adapted, "llama", (1.0, 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_in_the_original_units_predicts_the_scale_of_training_again(dtype: torch.dtype) -> None:
    model = make_model({"B", "head"}, num_labels=1)[0].unload().to(dtype)
    before = predictions(model).float()

    unscale_head(model, RANGE)
    torch.testing.assert_close(
        predictions(model).float(), (before + 1) / 5, atol=1e-6 if dtype == torch.float32 else 2e-3, rtol=0
    )
    rescale_head(model, RANGE)
    torch.testing.assert_close(
        predictions(model).float(), before, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0
    )


@pytest.mark.parametrize(("family", "head_init"), [("electra", "auto"), ("albert", "checkpoint"), ("qwen2", "auto")])
def test_a_kept_head_is_converted_to_the_scale_of_training(family: str, head_init: str, tmp_path: Path) -> None:
    source = save_checkpoint(family, tmp_path, "classifier", id2label={0: "value"})
    settings = ModelConfig("own", source, task="regression", pooling="auto", attn_implementation="auto")
    # Without a bias, the range must start at 0.
    low, high = (0.0, 5.0) if family == "qwen2" else (1.0, 5.0)
    original = AutoModelForSequenceClassification.from_pretrained(source)

    choice = choose_head(settings, ("value",), head_init, (low, high))
    model, _ = load_base(settings, 1, 0, choice.kept)

    assert choice.kept == KeptHead((0,), (low, high))
    assert f"mapped from data.label_range = [{low:g}, 5] to 0 … 1" in choice.summary
    torch.testing.assert_close(predictions(model), (predictions(original) - low) / (high - low))
    # Labels as they are need no conversion.
    unchanged, _ = load_base(settings, 1, 0, choose_head(settings, ("value",), head_init).kept)
    assert torch.equal(predictions(unchanged), predictions(original))


def test_a_kept_head_without_bias_is_refused_for_a_range_that_does_not_start_at_0(tmp_path: Path) -> None:
    source = save_checkpoint("qwen2", tmp_path, "classifier", id2label={0: "value"})
    settings = ModelConfig("own", source, task="regression", pooling="auto")

    with pytest.raises(ModelError, match=r"it has no bias, so the range must start at 0"):
        load_base(settings, 1, 0, choose_head(settings, ("value",), "auto", (1.0, 5.0)).kept)
