"""Models whose frozen layers bitsandbytes quantizes. `scripts/test_quantized` runs this file, with that package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from token_losses import assert_fused_gradients_are_those_of_single_examples
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: scripts/test_quantized")

from fedsvd.cli import main
from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.quantized import is_quantized
from fedsvd.models.load_options import LoadOptions
from fedsvd.models.loading import load_base, load_causal_lm
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.trained.prediction import class_logits, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run

KINDS = ("nf4", "int8")
TEXTS = ["A fine film.", "Dull, dull, dull."]


def adapt(base: Any, parts: set[Any], init_a: str = "orthonormal") -> Any:
    model = peft_model.attach(base, rank=4, lora_alpha=16, target_modules="all-linear", task="causal_lm")
    weights = frozen_weights(model)
    drawn = initialize_factors(peft_model.read(model), init_a=init_a, init_b="kaiming", seed=0, weights=weights)
    peft_model.write(model, drawn)
    peft_model.set_trainable(model, parts)
    return model


def gpt2(folder: Path) -> str:
    config = AutoConfig.for_model("gpt2", vocab_size=30522, n_embd=64, n_layer=1, n_head=2, n_inner=64)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("mistral", "float32", 1e-5), ("mistral", "bfloat16", 0.05), ("gpt2", "float32", 1e-5)],
)
def test_fused_gradients_equal_those_of_single_examples(
    decoder: str, tmp_path: Path, family: str, kind: str, dtype: str, tolerance: float
) -> None:
    source = decoder if family == "mistral" else gpt2(tmp_path)
    base = load_causal_lm(source, LoadOptions(dtype=dtype, quantization=kind)).model
    model = adapt(base, {"A", "B"})
    assert all(is_quantized(site.layer.get_base_layer()) for site in peft_model.lora_sites(model).values())
    assert not is_quantized(base.get_output_embeddings())
    with torch.no_grad():
        # An evaluation must not change what training computes.
        model.eval()(input_ids=torch.full((2, 5), 300))

    assert_fused_gradients_are_those_of_single_examples(model, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_svd_reads_the_weights_that_the_model_computes_with(decoder: str, kind: str) -> None:
    model = adapt(load_causal_lm(decoder, LoadOptions(quantization=kind)).model, {"B"}, "weight_svd")
    site = peft_model.lora_sites(model)["model.layers.0.self_attn.q_proj"]
    layer = site.layer.get_base_layer()
    weight = layer(torch.eye(64)).detach().T
    x = torch.randn(3, 64)
    assert torch.equal(layer.eval()(x), layer.train()(x))

    expected = torch.linalg.svd(weight).Vh[:4]
    assert (site.A @ expected.T).abs().sub(torch.eye(4)).abs().max() < 1e-3
    assert torch.allclose(frozen_weights(model)["model.layers.0.self_attn.q_proj"], weight, atol=1e-6)


def test_a_quantized_checkpoint_is_loaded_as_it_is(decoder: str, tmp_path: Path) -> None:
    ids = torch.full((1, 5), 300)
    for kind in KINDS:
        saved = load_causal_lm(decoder, LoadOptions(quantization=kind)).model
        saved.save_pretrained(tmp_path / kind)
        loaded = load_causal_lm(str(tmp_path / kind), LoadOptions(quantization=kind)).model
        assert torch.equal(loaded(input_ids=ids).logits, saved(input_ids=ids).logits)
        with pytest.raises(ModelError, match=rf"quantized with {kind}.* set model.quantization={kind}"):
            load_causal_lm(str(tmp_path / kind))
    path = tmp_path / "int8" / "config.json"
    values = json.loads(path.read_text())
    # The threshold of most checkpoints; it would let examples of a batch depend on each other.
    values["quantization_config"]["llm_int8_threshold"] = 6.0
    path.write_text(json.dumps(values))
    layers = load_causal_lm(str(tmp_path / "int8"), LoadOptions(quantization="int8")).model.modules()
    assert {layer.state.threshold for layer in layers if is_quantized(layer)} == {0.0}


def test_layers_that_bitsandbytes_gets_wrong_are_refused() -> None:
    options = LoadOptions(quantization="nf4")
    with pytest.raises(ModelError, match=r"q_proj has 32 inputs.*multiples of 64"):
        load_causal_lm("embedded:tiny-llama", options)


def test_a_stock_head_is_not_quantized(encoder: str) -> None:
    config = ModelConfig("own", encoder, pooling="stock", quantization="int8")
    model, head = load_base(config, 2, 0)

    assert "classifier" in head
    quantized = {name for name, layer in model.named_modules() if is_quantized(layer)}
    assert quantized
    assert not any(name.startswith(tuple(head)) for name in quantized)


@pytest.fixture(scope="module")
def answerer(decoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    arguments = [
        "experiment=smoke", "model=tiny_llama", f"model.source={decoder}", "model.quantization=nf4", "plots=false",
        "model.lora_layers=top_1", "train.num_rounds=1", "train.learning_rate=20", "data.max_test_examples=8",
        "data.max_train_examples=60", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    assert main(["train", *arguments]) == 0
    return folder


def test_a_private_run_on_a_quantized_base_is_evaluated_and_exported(answerer: Path, tmp_path: Path) -> None:
    rows = read_rows(answerer / "metrics.jsonl")
    assert 0 < read_json(answerer / "privacy.json")["clients"]["0"]["epsilon"] <= 6
    assert rows[-1]["loss"] != rows[0]["loss"]
    # The states below the adapted layer are cached.
    assert "frozen layers are recomputed" not in (answerer / "train.log").read_text()
    trained = load_trained_model(read_run(answerer)).model
    assert main(["export", str(answerer), "--to", str(tmp_path / "merged"), "--merge"]) == 0
    assert main(["export", str(answerer), "--to", str(tmp_path / "adapter")]) == 0

    ids = torch.arange(300, 310)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not any(map(is_quantized, merged.modules()))
    expected = trained(input_ids=ids).logits
    assert (merged(input_ids=ids).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'bnb_4bit_quant_type="nf4"' in card
    assert "BitsAndBytesConfig" not in (tmp_path / "merged" / "README.md").read_text()


def test_a_run_on_a_quantized_encoder_is_exported_to_a_stock_class(encoder: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [
        "experiment=smoke", f"model.source={encoder}", "model.quantization=int8",
        "train.head=private", "train.num_rounds=1", "plots=false", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    assert main(["train", *arguments]) == 0
    run = read_run(folder)
    data: Dataset = unlabeled_dataset(TEXTS, None, ("negative", "positive"))
    trained = load_trained_model(run)
    assert any(map(is_quantized, trained.model.modules()))
    expected = class_logits(trained, data)
    assert main(["export", str(folder), "--to", str(tmp_path / "merged"), "--merge"]) == 0

    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    batch = AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXTS, return_tensors="pt", padding=True)
    assert (stock(**batch).logits - expected).abs().max() < 1e-3 * expected.abs().max()
    assert read_json(folder / "run.json")["pooling"]["stock_class"] is False
