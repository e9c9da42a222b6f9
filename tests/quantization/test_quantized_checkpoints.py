"""Checkpoints that bitsandbytes has quantized, and adapters of quantized models as their model cards load them."""

from pathlib import Path

import pytest
import torch
from model_cards import run_card
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: scripts/test_quantized")

from fedsvd.cli import main
from fedsvd.lora.quantized import is_quantized
from fedsvd.models.load_options import LoadOptions
from fedsvd.models.loading import load_causal_lm, load_tokenizer
from fedsvd.trained.run import load_trained_model, read_run

TEXTS = ["A fine film.", "Dull, dull, dull."]
STOCK_CLASSIFIER = [
    "experiment=smoke", "model.pooling=stock", "model.target_modules=auto", "train.head=private", "train.num_rounds=1",
    "plots=false",
]  # fmt: skip


def test_the_card_of_a_quantized_classifier_loads_its_head_unquantized(encoder: str, tmp_path: Path) -> None:
    folder, to = tmp_path / "run", tmp_path / "adapter"
    settings = [f"model.source={encoder}", "model.quantization=int8", f"hydra.run.dir={folder}"]
    assert main(["train", *STOCK_CLASSIFIER, *settings]) == 0
    assert main(["export", str(folder), "--to", str(to)]) == 0

    loaded = run_card(to)
    head = loaded["model"].get_submodule("classifier")
    assert any(isinstance(layer, nn.Linear) for layer in head.modules())
    assert not any(map(is_quantized, head.modules()))
    assert any(map(is_quantized, loaded["model"].modules()))
    batch = loaded["tokenizer"](TEXTS, return_tensors="pt", padding=True)
    trained = load_trained_model(read_run(folder)).model
    with torch.inference_mode():
        actual, expected = loaded["model"].eval()(**batch).logits, trained(**batch).logits
    # In evaluation on a CPU, bitsandbytes also rounds activations; the run does not.
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_encoder_gets_a_head_that_is_not_quantized(encoder: str, kind: str, tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "run"
    quantization = BitsAndBytesConfig(
        load_in_4bit=kind == "nf4", load_in_8bit=kind == "int8", bnb_4bit_quant_type="nf4"
    )
    AutoModel.from_pretrained(encoder, quantization_config=quantization).save_pretrained(checkpoint)
    load_tokenizer(encoder).save_pretrained(checkpoint)

    settings = [f"model.source={checkpoint}", f"model.quantization={kind}", f"hydra.run.dir={folder}"]
    assert main(["train", *STOCK_CLASSIFIER, *settings]) == 0
    model = load_trained_model(read_run(folder)).model
    assert any(map(is_quantized, model.modules()))
    assert not any(map(is_quantized, model.get_submodule("base_model.model.classifier").modules()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_checkpoint_computes_in_the_type_of_the_configuration(
    decoder: str, dtype: str, tmp_path: Path
) -> None:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )
    AutoModelForCausalLM.from_pretrained(
        decoder, quantization_config=quantization, dtype=torch.float16
    ).save_pretrained(tmp_path)

    model = load_causal_lm(str(tmp_path), LoadOptions(dtype=dtype, quantization="nf4")).model
    expected = getattr(torch, dtype)
    assert {layer.compute_dtype for layer in model.modules() if is_quantized(layer)} == {expected}
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {expected}
