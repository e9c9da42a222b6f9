"""Quantization that is impossible is refused by name; tests/quantization has what needs bitsandbytes."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fedsvd.errors import ModelError
from fedsvd.models.embedded import resolve_source
from fedsvd.models.load_options import LoadOptions
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
