"""Initial rows of A from public text (``method.init_a=public_pca``), computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsvd.assets import build_once, cache_folder
from fedsvd.config import ModelConfig
from fedsvd.data.public_text import spread
from fedsvd.lora.public_pca import leading_directions
from fedsvd.models.loading import load_tokenizer
from fedsvd.models.text_batches import text_batches
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.training.site_inputs import site_input_moments

# Part of the cache key: increase it when the definition of the rows changes.
_VERSION = 1
# The texts have some twenty tokens each, so a thousand are many more tokens than a site has inputs.
MAX_TEXTS = 1000
_FILE = "rows.safetensors"
# Parts of the names of PEFT's factors, and of heads, which are drawn from the seed.
_NOT_FROZEN = ("lora_", "modules_to_save", "original_module")


def public_rows(model: peft.PeftModel, config: ModelConfig) -> dict[str, Tensor]:
    """Return the rows of A by site, shape (r, d_in), float32, orthonormal.

    They depend on the frozen model and on public text only: neither on private text nor on the seed.

    Args:
        model: The adapted model, without a merged base; its factors are disabled.
        config: The ``model`` configuration group.

    Raises:
        ModelError: The rank is too high for a site.
        DataError: The public text cannot be used.
    """
    corpus = load_public_corpus(config.public_text)
    settings = [_VERSION, config.rank, config.max_length, config.dtype, config.lora_layers]
    digest = hashlib.sha256(
        json.dumps([*settings, str(config.target_modules), config.pooling_layer, corpus.corpus["sha256"]]).encode()
    )
    for name, weight in model.named_parameters():
        if not any(part in name for part in _NOT_FROZEN):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def build(folder: Path) -> None:
        tokenizer = load_tokenizer(config.source)
        batches = text_batches(spread(corpus.texts, MAX_TEXTS), tokenizer, config.max_length, model.device)
        with model.disable_adapter():
            moments = site_input_moments(model, batches, tokenizer.all_special_ids)
        rows = {name: leading_directions(sums, config.rank, name).float() for name, sums in moments.items()}
        save_file({name: tensor.contiguous() for name, tensor in rows.items()}, folder / _FILE)

    folder = build_once(cache_folder() / f"public-pca-{digest.hexdigest()[:32]}", build)
    return load_file(folder / _FILE)
