"""Checkpoints with 8-bit weights of torchao. `scripts/test_quantized` runs this file, with that package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import save_checkpoint
from token_losses import assert_fused_gradients_are_those_of_single_examples
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, TorchAoConfig

pytest.importorskip("torchao", reason="needs torchao: scripts/test_quantized")

from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

from fedsvd.cli import main
from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.frozen_weights import frozen_weights, quantized_sites
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.quantized import is_quantized
from fedsvd.models.load_options import LoadOptions
from fedsvd.models.loading import load_causal_lm, load_tokenizer
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.trained.run import load_trained_model, read_run

SITE = "model.layers.0.self_attn.q_proj"


def quantized(plain: str, folder: Path, kind: Any) -> str:
    config = TorchAoConfig(quant_type=kind)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32).save_pretrained(folder)
    for path in Path(plain).glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    return save_checkpoint("mistral", tmp_path_factory.mktemp("plain"), **sizes)


@pytest.fixture(scope="module")
def checkpoint(plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return quantized(plain, tmp_path_factory.mktemp("torchao"), Int8WeightOnlyConfig())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_fused_gradients_equal_those_of_single_examples(checkpoint: str, dtype: str, tolerance: float) -> None:
    base = load_causal_lm(checkpoint, LoadOptions(dtype=dtype, quantization="torchao")).model
    model = peft_model.attach(base, rank=4, lora_alpha=16, target_modules="all-linear", task="causal_lm")
    weights = frozen_weights(model)
    peft_model.write(
        model,
        initialize_factors(peft_model.read(model), init_a="weight_svd", init_b="kaiming", seed=0, weights=weights),
    )
    peft_model.set_trainable(model, {"A", "B"})
    assert quantized_sites(model) == list(peft_model.lora_sites(model))

    assert_fused_gradients_are_those_of_single_examples(model, tolerance)


def test_weight_svd_reads_the_weights_that_the_model_computes_with(checkpoint: str, plain: str) -> None:
    base = load_causal_lm(checkpoint, LoadOptions(quantization="torchao")).model
    model = peft_model.attach(base, rank=4, lora_alpha=16, target_modules=["q_proj"], task="causal_lm")
    weight = frozen_weights(model)[SITE]

    layer = peft_model.lora_sites(model)[SITE].layer.get_base_layer()
    torch.testing.assert_close(layer(torch.eye(64)).detach().T, weight)
    original = AutoModelForCausalLM.from_pretrained(plain).get_submodule(SITE).weight
    # Eight bits by row: half a step is 1/254 of the row's largest value.
    assert (weight - original).abs().max() <= original.abs().max() / 250
    assert not torch.equal(weight, original)


def test_other_checkpoints_and_settings_are_refused(checkpoint: str, plain: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantized with torchao, .* set model\.quantization=torchao"):
        load_causal_lm(checkpoint)
    with pytest.raises(ModelError, match="needs a checkpoint that torchao has quantized"):
        load_causal_lm(plain, LoadOptions(quantization="torchao"))
    # Rounded activations have no exact gradient.
    dynamic = quantized(plain, tmp_path / "dynamic", Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ModelError, match=r"quantized with torchao \(Int8DynamicActivationInt8WeightConfig\)"):
        load_causal_lm(dynamic, LoadOptions(quantization="torchao"))


def test_a_private_run_is_evaluated_and_exported(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [
        "experiment=smoke", "model=tiny_llama", f"model.source={checkpoint}", "model.quantization=torchao",
        "plots=false", "model.lora_layers=top_1", "train.num_rounds=1", "train.learning_rate=20",
        "data.max_test_examples=8", "data.max_train_examples=60", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    assert main(["train", *arguments]) == 0
    rows = read_rows(folder / "metrics.jsonl")
    assert 0 < read_json(folder / "privacy.json")["clients"]["0"]["epsilon"] <= 6
    assert rows[-1]["loss"] != rows[0]["loss"]
    # The states below the adapted layer are cached.
    assert "frozen layers are recomputed" not in (folder / "train.log").read_text()
    trained = load_trained_model(read_run(folder)).model
    assert any(map(is_quantized, trained.modules()))
    assert main(["export", str(folder), "--to", str(tmp_path / "merged"), "--merge"]) == 0
    assert main(["export", str(folder), "--to", str(tmp_path / "adapter")]) == 0

    ids = torch.arange(300, 310)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    expected = trained(input_ids=ids).logits
    assert (merged(input_ids=ids).logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_methods_that_change_the_weights_are_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["experiment=smoke", "model=tiny_llama", f"model.source={checkpoint}", "model.quantization=torchao"]
    assert main(["train", *arguments, "method=fedex_lora", f"hydra.run.dir={tmp_path}"]) == 2
    assert "model.quantization = torchao is unsupported with method.name = fedex_lora" in capsys.readouterr().err


def test_a_private_run_of_an_encoder_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=30522, num_hidden_layers=2, num_attention_heads=2, hidden_size=64, intermediate_size=64
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "plain")
    kind = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    AutoModel.from_pretrained(tmp_path / "plain", quantization_config=kind).save_pretrained(tmp_path / "encoder")
    load_tokenizer("embedded:tiny").save_pretrained(tmp_path / "encoder")
    folder = tmp_path / "run"
    arguments = [
        "experiment=smoke", f"model.source={tmp_path / 'encoder'}", "model.quantization=torchao", "model.pooling=mean",
        "train.head=private", "train.num_rounds=1", "plots=false", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    assert main(["train", *arguments]) == 0
    trained = load_trained_model(read_run(folder)).model
    assert any(map(is_quantized, trained.modules()))
    rows = read_rows(folder / "metrics.jsonl")
    assert rows[-1]["loss"] != rows[0]["loss"]
