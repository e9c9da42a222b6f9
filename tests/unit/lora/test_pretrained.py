"""Loading of saved adapters: the factors and the head are float32, whatever the type of the base model is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedsvd.lora import peft_model
from fedsvd.lora.pretrained import load_pretrained

IDS = torch.arange(2, 14).reshape(2, 6)
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
# The model, its task, the layers with factors, and the modules of the head.
MODELS = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**SIZES)), "sequence_classification", "query"),
    "tags": (lambda: BertForTokenClassification(BertConfig(**SIZES)), "token_classification", "query"),
    # A head of two layers, and one without a bias.
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)), "sequence_classification", "query"),
    "llama": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, pad_token_id=0)),
        "sequence_classification",
        "q_proj",
    ),
}


def make_base(name: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name][0]().to(dtype).eval()
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    values: Tensor = model.eval()(input_ids=IDS).logits
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_computes_what_the_trained_one_did(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, task, layer = MODELS[name]
    head = ["score" if name == "llama" else "classifier"]
    trained = peft_model.attach(
        make_base(name, dtype), rank=2, lora_alpha=4, target_modules=[layer], task=task, head_modules=head
    )
    adapter = peft_model.read(trained)
    torch.manual_seed(1)
    drawn = {part: {n: torch.randn_like(t) for n, t in adapter.part(part).items()} for part in ("B", "head")}
    adapter = adapter.with_parts(drawn)
    peft_model.save_pretrained(trained, adapter, tmp_path)

    loaded = load_pretrained(make_base(name, dtype), tmp_path)

    found = peft_model.read(loaded)
    for part in ("A", "B", "head"):
        assert all(torch.equal(tensor, adapter.part(part)[n]) for n, tensor in found.part(part).items())
        assert found.part(part).keys() == adapter.part(part).keys()
    assert logits(loaded).dtype == torch.float32
    assert torch.equal(logits(loaded), logits(trained))
