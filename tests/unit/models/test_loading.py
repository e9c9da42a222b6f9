"""Tests of model and tokenizer loading, and of classifier heads that depend only on the seed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2Model
from transformers.utils import logging as transformers_logging

from fedsvd.errors import ModelError
from fedsvd.models.loading import load_classifier, load_tokenizer

HEAD = ("classifier.bias", "classifier.weight")


@pytest.fixture(autouse=True)
def quiet_saving() -> Iterator[None]:
    """Suppress progress bars while the tests save models, and restore the setting."""
    progress_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    yield
    if progress_bars:
        transformers_logging.enable_progress_bar()


def save(model: torch.nn.Module, folder: Path) -> str:
    """Save a model with MiniLM's tokenizer, and return the directory."""
    model.save_pretrained(folder)
    load_tokenizer("embedded:minilm").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    config = GPT2Config(
        vocab_size=30522, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=5, eos_token_id=5
    )
    return save(GPT2Model(config), tmp_path / "gpt2")


@pytest.mark.parametrize("source", ["embedded:minilm", "embedded:tiny"])
def test_only_the_head_is_newly_initialized(source: str) -> None:
    loaded = load_classifier(source, num_labels=3, seed=0)
    assert loaded.new_parameters == HEAD
    assert loaded.model.classifier.weight.shape[0] == 3
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training


def test_minilm_checkpoint_includes_the_pooler() -> None:
    loaded = load_classifier("embedded:minilm", num_labels=2, seed=0)
    assert sum(parameter.numel() for parameter in loaded.model.bert.parameters()) == 22_713_216
    assert not [name for name in loaded.new_parameters if "pooler" in name]


def test_seed_decides_only_the_head() -> None:
    first, same_seed, other_seed = (
        load_classifier("embedded:tiny", num_labels=2, seed=seed).model for seed in (0, 0, 1)
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, same_seed.state_dict()[name]), name
    assert not torch.equal(first.classifier.weight, other_seed.classifier.weight)
    assert all(torch.equal(v, other_seed.bert.state_dict()[k]) for k, v in first.bert.state_dict().items())


def test_global_generator_is_neither_used_nor_changed() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = load_classifier("embedded:tiny", num_labels=2, seed=0).model.classifier.weight
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(load_classifier("embedded:tiny", num_labels=2, seed=0).model.classifier.weight, first)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


SUMMARY = """
import json
from fedsvd.models.loading import load_classifier
model = load_classifier("embedded:tiny", num_labels=2, seed=3).model
print(json.dumps([p.double().sum().item() for p in model.parameters()]))
"""


@pytest.mark.slow
def test_another_process_with_an_empty_cache_creates_the_same_model_silently(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    wheel = Path(load_classifier("embedded:minilm", num_labels=2, seed=0).path).parent
    for file in wheel.glob("*.whl"):
        (tmp_path / "cache" / file.name).symlink_to(file)
    result = run_python(SUMMARY, FEDSVD_CACHE=str(tmp_path / "cache"), PIP_NO_INDEX="1", HF_HUB_OFFLINE="1")
    assert result.stderr == ""
    model = load_classifier("embedded:tiny", num_labels=2, seed=3).model
    assert json.loads(result.stdout) == [p.double().sum().item() for p in model.parameters()]


def test_loading_prints_nothing_and_restores_the_log_level(capfd: pytest.CaptureFixture[str]) -> None:
    transformers_logging.enable_progress_bar()
    level = transformers_logging.get_verbosity()
    load_classifier("embedded:minilm", num_labels=2, seed=0)
    load_tokenizer("embedded:minilm")
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == (level, True)


@pytest.mark.parametrize("source", ["embedded:tiny", "gpt2"])
def test_dropout_is_disabled_even_in_training_mode(source: str, gpt2: str) -> None:
    model = load_classifier(gpt2 if source == "gpt2" else source, num_labels=2, seed=0).model.train()
    ids = torch.arange(100, 110)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    dropouts = {k: v for k, v in model.config.to_dict().items() if "drop" in k and isinstance(v, float)}
    assert len(dropouts) >= 2
    assert set(dropouts.values()) == {0.0}


def test_causal_classifier_uses_the_tokenizers_padding_token(gpt2: str) -> None:
    # The model's end token is 5, MiniLM's padding token 0. A classifier that looked for 5 would use the logits of the
    # padding.
    model, tokenizer = load_classifier(gpt2, num_labels=2, seed=0).model, load_tokenizer(gpt2)
    single = tokenizer(["short"], return_tensors="pt")
    padded = tokenizer(["short", "and a rather longer text"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=single["input_ids"], attention_mask=single["attention_mask"]).logits[0]
        actual = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[0]
    torch.testing.assert_close(actual, expected)


def test_tokenizer_without_padding_token_uses_its_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded:minilm")
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "[SEP]"


def test_tokenizer_without_padding_and_end_token_raises(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded:minilm")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        load_tokenizer(str(tmp_path))


def test_head_of_a_local_checkpoint_is_loaded(tmp_path: Path) -> None:
    original = load_classifier("embedded:tiny", num_labels=3, seed=5).model
    loaded = load_classifier(save(original, tmp_path / "saved"), num_labels=3, seed=0)
    assert loaded.new_parameters == ()
    assert loaded.path == str(tmp_path / "saved")
    assert torch.equal(loaded.model.classifier.weight, original.classifier.weight)


def test_path_reloads_the_same_base_model() -> None:
    loaded = load_classifier("embedded:tiny", num_labels=2, seed=0)
    reloaded = AutoModel.from_pretrained(loaded.path)
    assert loaded.model.config.name_or_path == loaded.path
    assert all(torch.equal(v, loaded.model.bert.state_dict()[k]) for k, v in reloaded.state_dict().items())


def test_head_for_another_number_of_labels_raises(tmp_path: Path) -> None:
    folder = save(load_classifier("embedded:tiny", num_labels=3, seed=0).model, tmp_path / "three")
    with pytest.raises(ModelError, match="another number of labels"):
        load_classifier(folder, num_labels=2, seed=0)


def test_damaged_checkpoint_raises(tmp_path: Path) -> None:
    folder = save(load_classifier("embedded:tiny", num_labels=2, seed=0).model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged" * 10)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_classifier(folder, num_labels=2, seed=0)


@pytest.mark.parametrize("source", ["embedded:gpt9", "./no-such-folder"])
def test_unknown_source_raises_with_a_remedy(source: str) -> None:
    with pytest.raises(ModelError, match="embedded:minilm") as caught:
        load_classifier(source, num_labels=2, seed=0)
    assert repr(source) in str(caught.value)


@pytest.mark.slow
def test_unreachable_hub_model_raises_model_error() -> None:
    code = """
from fedsvd.errors import ModelError
from fedsvd.models.loading import load_classifier, load_tokenizer
for load in (load_tokenizer, lambda source: load_classifier(source, num_labels=2, seed=0)):
    try:
        load("no-such-owner/no-such-model")
    except ModelError as error:
        print(error)
"""
    result = run_python(code, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("no-such-owner/no-such-model" in line and "this machine can reach" in line for line in lines)
