"""Checkpoints to quantize."""

from typing import Any

import pytest
import torch
from families import save_checkpoint
from transformers import AutoConfig, AutoModel

from fedsvd.models.loading import load_tokenizer

# bitsandbytes' 4-bit products on a CPU need inputs that are multiples of 64.
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint("mistral", tmp_path_factory.mktemp("decoder"), **SIZES, head_dim=32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    config = AutoConfig.for_model("bert", vocab_size=30522, num_hidden_layers=2, num_attention_heads=2, **SIZES)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    load_tokenizer("embedded:tiny").save_pretrained(folder)
    return str(folder)
