"""Small models of many architectures with random weights and MiniLM's tokenizer, saved like checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedsvd.models.embedded import quiet_transformers, resolve_source

_IDS = {"vocab_size": 30522, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_DECODER = {**_IDS, **_SIZES, "num_key_value_heads": 1, "head_dim": 16}

# Settings of each architecture's configuration, by ``model_type``.
ENCODERS: Mapping[str, dict[str, Any]] = {
    "electra": {**_IDS, **_SIZES, "embedding_size": 16},
    "albert": {**_IDS, **_SIZES, "embedding_size": 16},
    "mpnet": {**_IDS, **_SIZES},
    "deberta-v2": {**_IDS, **_SIZES, "relative_attention": True, "position_biased_input": False,
                   "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    "modernbert": {**_IDS, **_SIZES, "cls_token_id": 101, "sep_token_id": 102, "local_attention": 16},
    "xlnet": {**_IDS, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
}  # fmt: skip
DECODERS: Mapping[str, dict[str, Any]] = {
    "qwen2": {**_IDS, **_SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": _DECODER,
    "gemma2": {**_DECODER, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "phi3": {**_DECODER},
    "opt": {**_IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48,
            "word_embed_proj_dim": 16, "layerdrop": 0.5},
    "mixtral": {**_DECODER, "num_local_experts": 3, "num_experts_per_tok": 2, "router_jitter_noise": 0.1},
    "gpt_neox": {**_IDS, **_SIZES},
    "bloom": {**_IDS, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mistral": {**_DECODER, "sliding_window": 16},
}  # fmt: skip
# Tokens that all of them have.
IDS = torch.arange(200, 212).view(2, 6)
_CLASSES = {"causal_lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "base": AutoModel}


def save_checkpoint(family: str, folder: Path, kind: str = "", **settings: Any) -> str:
    """Save a model and its tokenizer, and return the directory.

    Args:
        family: A key of `ENCODERS` or `DECODERS`.
        folder: The directory to write.
        kind: ``causal_lm``, ``classifier`` or ``base``. Default: a decoder is saved as a language model.
        settings: Further settings of the configuration.
    """
    config = AutoConfig.for_model(family, **({**ENCODERS, **DECODERS}[family] | settings))
    kind = kind or ("base" if family in ENCODERS else "causal_lm")
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _CLASSES[kind].from_config(config)
        # Larger than in practice, so that layers change their inputs visibly.
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(resolve_source("embedded:minilm"))
        if family in DECODERS:
            tokenizer.eos_token = tokenizer.sep_token
        tokenizer.save_pretrained(folder)
    return str(folder)


def logits(model: nn.Module) -> torch.Tensor:
    """Return the logits of `IDS`."""
    with torch.no_grad():
        values: torch.Tensor = model(input_ids=IDS).logits
    return values
