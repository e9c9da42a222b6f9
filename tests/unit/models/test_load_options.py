"""Quantization that is impossible is refused by name; tests/quantization has what needs bitsandbytes."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from fedsvd.config import ModelConfig
from fedsvd.errors import ConfigError, ModelError
from fedsvd.models.embedded import resolve_source
from fedsvd.models.load_options import LoadOptions, finish_loading
from fedsvd.models.loading import load_causal_lm


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"nf4 needs bitsandbytes.*pip install 'fedsvd\[quantization\]'"):
        load_causal_lm("embedded:tiny-llama", LoadOptions(quantization="nf4"))


@pytest.mark.parametrize("method", ["gptq", "awq", "torchao"])
def test_checkpoints_of_other_quantizations_are_refused(tmp_path: Path, method: str) -> None:
    shutil.copytree(resolve_source("embedded:tiny-llama"), tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=rf"quantized with {method}.*choose the unquantized checkpoint"):
        load_causal_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (LoadOptions("flash_attention_2", "bfloat16"), "its kernels need a CUDA device, and the device is cpu"),
        (LoadOptions("flash_attention_2", "bfloat16", device="cuda"), "the package flash-attn is not installed"),
        (LoadOptions(device_map="auto", device="cuda"), "needs several GPUs .*: torch finds 1 on this machine"),
        (LoadOptions(device_map="auto"), "and the device is cpu"),
    ],
)
def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, options: LoadOptions, reason: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match=reason):
        load_causal_lm("embedded:tiny-llama", options)


def test_a_model_that_the_gpus_cannot_hold_is_refused() -> None:
    model = load_causal_lm("embedded:tiny-llama").model
    # What transformers records of where it has placed the layers.
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1, "model.layers.1": "cpu", "lm_head": "disk"}
    with pytest.raises(
        ModelError, match=r"'own' does not fit on the GPUs: model.layers.1, lm_head would be on the CPU"
    ):
        finish_loading(model, LoadOptions(device_map="auto", device="cuda"), "own")


def test_flash_attention_needs_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"not possible with model.dtype = float32.*Set model.dtype=bfloat16"):
        ModelConfig("own", "embedded:tiny", attn_implementation="flash_attention_2")
